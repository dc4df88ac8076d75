"""Whether a strategy fits a machine, and with how many tokens at a time. PURE."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.memory import GIB, Job, Machine, MemoryEstimate, Place, estimate_memory
from launcher.plan_request import Precision, Request
from launcher.profile import Profile
from launcher.strategy import Strategy
from trainer.config import Config
from trainer.model_facts import ModelFacts

# Matrix products of 7B-sized layers reach their full rate well below this many rows.
MOST_TOKENS_ON_GPU = 16_384
# SmolLM2 on two cores: 600 tokens/s at 1,024, 800 at 2,048, 820 at 4,096 (docs/log.md).
MOST_TOKENS_ON_CPU = 2048
# Of a device's memory, what a plan may use: the rest is for what no model foresees.
USABLE_SHARE = 0.95
_TOKEN_STEP = 128  # micro-batches are rounded down to multiples: rows of round sizes
PLACE_NAMES: dict[Place, str] = {
    "device": f"memory of one process ({1 - USABLE_SHARE:.0%} kept free)",
    "pinned": "pinned host memory",
    "host": "host memory",
    "nvme": "NVMe",
    "disk": "disk",
}


@dataclass(frozen=True)
class Candidate:
    """A strategy at one micro-batch size, and what it needs."""

    strategy: Strategy
    num_tokens: int
    estimate: MemoryEstimate
    shortfall: str
    """Empty when it fits; else what is missing, in words."""


def fewest_tokens(request: Request) -> int:
    """The smallest micro-batch that holds any example."""
    return request.config.training.max_tokens_per_device or request.longest_tokens


def most_tokens(request: Request) -> int:
    """More than this is of no use: a rank's whole share of a step, or a saturated device."""
    training, longest = request.config.training, request.longest_tokens
    if training.max_tokens_per_device is not None:
        return training.max_tokens_per_device
    share = math.ceil(request.global_batch_size / request.world_size) * longest
    enough = MOST_TOKENS_ON_GPU if request.profile.device == "cuda" else MOST_TOKENS_ON_CPU
    return max(longest, min(share, enough))


def with_most_tokens(request: Request, strategy: Strategy, least: Candidate) -> Candidate:
    """Bisect: memory grows with the tokens of a micro-batch."""
    low, high = least.num_tokens, most_tokens(request)
    best = least
    full = size_up(request, strategy, high)
    if not full.shortfall:
        return full
    while high - low > _TOKEN_STEP:
        middle = (low + high) // 2 // _TOKEN_STEP * _TOKEN_STEP
        if middle <= low:
            break
        tried = size_up(request, strategy, middle)
        if tried.shortfall:
            high = middle
        else:
            low, best = middle, tried
    return best


def size_up(request: Request, strategy: Strategy, num_tokens: int) -> Candidate:
    """Estimate one strategy at one micro-batch size, and compare it with what there is."""
    estimate = estimate_memory(
        to_job(request.config, request.facts, request.basis.precision, num_tokens),
        strategy,
        to_machine(request.profile, request.nodes, request.processes_per_node),
    )
    return Candidate(strategy, num_tokens, estimate, _shortfall(request, estimate))


def to_job(config: Config, facts: ModelFacts, precision: Precision, num_tokens: int) -> Job:
    """Describe one rank's work; every token is taken to carry a label, which is the most."""
    return Job(
        facts=facts,
        is_lora=config.lora.enabled,
        precision_bytes=4 if precision == "fp32" else 2,
        optimizer=config.training.optimizer,
        num_tokens=num_tokens,
        num_labels=num_tokens,
        kept_checkpoints=config.checkpoint.keep_last,
        merges=config.merge.after_training,
        loads_best=config.evaluation.load_best,
    )


def to_machine(profile: Profile, nodes: int, processes_per_node: int) -> Machine:
    """Take from a profile what memory depends on."""
    is_gpu = profile.device == "cuda"
    reserve = profile.reserve
    process = reserve.host_gib_per_process * GIB
    return Machine(
        is_gpu=is_gpu,
        world_size=nodes * processes_per_node,
        processes_per_node=processes_per_node,
        context_bytes=reserve.cuda_context_gib * GIB if is_gpu else process,
        communication_bytes=reserve.nccl_gib_per_process * GIB if is_gpu else 0.0,
        host_process_bytes=process,
    )


def budgets(profile: Profile, processes_per_node: int) -> dict[Place, float]:
    """Bytes there are in each place. Pinned and other host memory share one budget ("host")."""
    host = max(0.0, profile.host.memory_gib - profile.reserve.host_gib) * GIB
    if profile.device == "cpu" or profile.gpu is None:
        device = host / processes_per_node
    else:
        device = profile.gpu.memory_gib * GIB
    return {
        "device": USABLE_SHARE * device,
        "host": host,
        "nvme": profile.nvme.gib * GIB if profile.nvme else 0.0,
        "disk": profile.disk_free_gib * GIB,
    }


def needs_of(estimate: MemoryEstimate) -> dict[Place, float]:
    """Bytes needed in each place of `budgets`."""
    return {
        "device": estimate.device,
        "host": estimate.host,
        "nvme": estimate.total("nvme"),
        "disk": estimate.total("disk"),
    }


def short_places(request: Request, estimate: MemoryEstimate) -> list[Place]:
    """Name the places that have less than is needed."""
    available = budgets(request.profile, request.processes_per_node)
    return [place for place, needed in needs_of(estimate).items() if needed > available[place]]


def _shortfall(request: Request, estimate: MemoryEstimate) -> str:
    available, needs = budgets(request.profile, request.processes_per_node), needs_of(estimate)
    missing = []
    for place in short_places(request, estimate):
        needed = needs[place]
        largest = sorted(
            (term for term in estimate.terms if term.place == place), key=lambda term: -term.bytes
        )[:3]
        parts = ", ".join(f"{term.name} {term.bytes / GIB:.1f}" for term in largest)
        missing.append(
            f"needs {needed / GIB:.1f} GiB of {PLACE_NAMES[place]}, there are "
            f"{available[place] / GIB:.1f} ({parts})"
        )
    return "; ".join(missing)
