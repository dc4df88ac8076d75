"""From config, profile and model facts to a plan, or to the reasons why there is none. PURE."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from launcher.engines.launch import EngineName
from launcher.memory import GIB, Job, Machine, MemoryEstimate, Place, estimate_memory
from launcher.profile import Profile
from launcher.run_plan import Decision, Rejection, RunPlan, TermLine, Usage
from launcher.strategy import Strategy, Zero, make_strategies
from trainer.config import Config
from trainer.model_facts import ModelFacts

Precision = Literal["fp32", "fp16", "bf16"]
# Matrix products of 7B-sized layers reach their full rate well below this many rows, and until
# attention is computed per segment its mask grows with the square.
MOST_TOKENS_ON_GPU = 16_384
# Of a device's memory, what a plan may use: the rest is for what no model foresees.
USABLE_SHARE = 0.95
_TOKEN_STEP = 128  # micro-batches are rounded down to multiples: rows of round sizes
_PLACE_NAMES: dict[Place, str] = {
    "device": "memory of one process",
    "pinned": "pinned host memory",
    "host": "host memory",
    "nvme": "NVMe",
    "disk": "disk",
}


@dataclass(frozen=True)
class Basis:
    """What the hardware decides of the config before memory is looked at."""

    quantization: str
    precision: Precision
    decisions: tuple[Decision, ...]


def choose_basis(config: Config, profile: Profile) -> Basis:
    """Decide quantisation and precision where the config leaves them to the hardware."""
    decisions = []
    quantization = config.model.quantization
    if quantization == "auto":
        quantization = profile.quantization if config.lora.enabled else "none"
        reason = f"profile {profile.name}"
        if not config.lora.enabled:
            reason = "full fine-tuning trains the weights themselves"
        decisions.append(Decision(setting="model.quantization", value=quantization, reason=reason))
    precision = config.training.precision
    if precision == "auto":
        precision, reason = _automatic_precision(profile)
        decisions.append(Decision(setting="training.precision", value=precision, reason=reason))
    return Basis(quantization, precision, tuple(decisions))


def _automatic_precision(profile: Profile) -> tuple[Precision, str]:
    """The rule of trainer.precision, for hardware that need not be here."""
    if profile.device == "mps":
        return "fp32", "16-bit training on MPS lacks fused kernels"
    if profile.bf16:
        return "bf16", f"this {profile.device} computes in bf16"
    if profile.device == "cuda":
        return "fp16", "this GPU is older than bf16 (compute capability < 8.0)"
    return "fp32", "this CPU has no bf16 instructions"


@dataclass(frozen=True)
class Request:
    """One question to the planner."""

    config: Config
    profile: Profile
    facts: ModelFacts
    basis: Basis
    deepspeed_configs: Mapping[str, Mapping[str, Any]]
    """Name -> content: the shipped ones, and the user's own under the name the config gives it."""
    nodes: int
    processes_per_node: int
    engine: EngineName | None = None
    """None: the planner chooses."""

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node

    @property
    def longest_tokens(self) -> int:
        """No example is longer; the data itself is not read."""
        limit = self.config.data.max_length
        return min(limit, self.facts.max_positions or limit)

    @property
    def global_batch_size(self) -> int:
        training = self.config.training
        if training.global_batch_size is not None:
            return training.global_batch_size
        pair = (training.batch_size or 1) * (training.gradient_accumulation_steps or 1)
        return pair * self.world_size


@dataclass(frozen=True)
class Candidate:
    """A strategy at one micro-batch size, and what it needs."""

    strategy: Strategy
    num_tokens: int
    estimate: MemoryEstimate
    shortfall: str
    """Empty when it fits; else what is missing, in words."""
    is_ruled_out: bool = False
    """Whatever its memory."""


@dataclass(frozen=True)
class Outcome:
    """The plan, or None; and every candidate looked at, the fastest strategy first."""

    plan: RunPlan | None
    candidates: tuple[Candidate, ...]

    @property
    def smallest(self) -> Candidate:
        """The candidate that comes nearest to fitting."""
        possible = [one for one in self.candidates if not one.is_ruled_out] or self.candidates
        return min(possible, key=lambda candidate: candidate.estimate.device)


def make_plan(request: Request) -> Outcome:
    """Take the fastest strategy that fits, with the largest micro-batch that is of use."""
    candidates: list[Candidate] = []
    for strategy, objection in _strategies(request):
        least = _candidate(request, strategy, _fewest_tokens(request))
        if objection:
            candidates.append(
                Candidate(strategy, least.num_tokens, least.estimate, objection, is_ruled_out=True)
            )
            continue
        candidates.append(least)
        if not least.shortfall:
            chosen = _with_most_tokens(request, strategy, least)
            return Outcome(_to_plan(request, chosen, candidates[:-1]), tuple(candidates))
    return Outcome(None, tuple(candidates))


# -- which strategies there are -------------------------------------------------------------------


def _strategies(request: Request) -> Iterator[tuple[Strategy, str]]:
    """Every strategy, and why it is out of the question whatever its memory ("" if it is not)."""
    config = request.config
    asked = config.training.gradient_checkpointing
    own = config.training.deepspeed_config
    configs = request.deepspeed_configs
    strategies = make_strategies(
        configs,
        world_size=request.world_size,
        method="lora" if config.lora.enabled else "full",
        checkpointing=(False, True) if asked == "auto" else (asked,),
    )
    if own is not None:
        known = [strategy for strategy in strategies if strategy.deepspeed_config == own]
        strategies = known or [
            Strategy(f"your {own}", own, Zero.read(configs[own]), bool(is_on), 1.0)
            for is_on in ((False, True) if asked == "auto" else (asked,))
        ]
    for strategy in strategies:
        yield strategy, "" if own is not None else _objection(request, strategy)


def _objection(request: Request, strategy: Strategy) -> str:
    zero, profile, offloads = strategy.zero, request.profile, strategy.is_offloaded
    optimizer = request.config.training.optimizer
    objections = {
        "DeepSpeed does not run on Apple MPS": profile.device == "mps" and zero.stage > 0,
        "there is no GPU to move memory away from": offloads and profile.device != "cuda",
        f"profile {profile.name} does not allow offloading (allow_offload: false)": offloads
        and not profile.allow_offload,
        f"profile {profile.name} names no NVMe disk": profile.nvme is None
        and "nvme" in (zero.optimizer_on, zero.parameters_on),
        "one process has nobody to share with": zero.stage > 0
        and not offloads
        and request.world_size == 1,
        "ZeRO-3 cannot partition int8 weights": zero.stage == 3
        and request.basis.quantization == "int8",
        f"DeepSpeed's update on the CPU is AdamW, not {optimizer}": offloads
        and optimizer not in ("adamw_torch", "adamw_torch_fused"),
    }
    return next((text for text, holds in objections.items() if holds), "")


# -- how much of it fits --------------------------------------------------------------------------


def _fewest_tokens(request: Request) -> int:
    return request.config.training.max_tokens_per_device or request.longest_tokens


def _most_tokens(request: Request) -> int:
    """More than this is of no use: a rank's whole share of a step, or a saturated device."""
    training, longest = request.config.training, request.longest_tokens
    if training.max_tokens_per_device is not None:
        return training.max_tokens_per_device
    share = math.ceil(request.global_batch_size / request.world_size) * longest
    if request.profile.device == "cuda":
        limit = max(longest, MOST_TOKENS_ON_GPU)
    else:  # longer rows are no faster there
        limit = longest * (training.batch_size or 1)
    return max(longest, min(share, limit))


def _with_most_tokens(request: Request, strategy: Strategy, least: Candidate) -> Candidate:
    """Bisect: memory grows with the tokens of a micro-batch."""
    low, high = least.num_tokens, _most_tokens(request)
    best = least
    full = _candidate(request, strategy, high)
    if not full.shortfall:
        return full
    while high - low > _TOKEN_STEP:
        middle = (low + high) // 2 // _TOKEN_STEP * _TOKEN_STEP
        if middle <= low:
            break
        tried = _candidate(request, strategy, middle)
        if tried.shortfall:
            high = middle
        else:
            low, best = middle, tried
    return best


def _candidate(request: Request, strategy: Strategy, num_tokens: int) -> Candidate:
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
    host = (profile.host.memory_gib - profile.reserve.host_gib) * GIB
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


def _needs(estimate: MemoryEstimate) -> dict[Place, float]:
    return {
        "device": estimate.device,
        "host": estimate.host,
        "nvme": estimate.total("nvme"),
        "disk": estimate.total("disk"),
    }


def _shortfall(request: Request, estimate: MemoryEstimate) -> str:
    available = budgets(request.profile, request.processes_per_node)
    missing = []
    for place, needed in _needs(estimate).items():
        if needed <= available[place]:
            continue
        largest = sorted(
            (term for term in estimate.terms if term.place == place), key=lambda term: -term.bytes
        )[:3]
        parts = ", ".join(f"{term.name} {term.bytes / GIB:.1f}" for term in largest)
        missing.append(
            f"needs {needed / GIB:.1f} GiB of {_PLACE_NAMES[place]}, there are "
            f"{available[place] / GIB:.1f} ({parts})"
        )
    return "; ".join(missing)


# -- the result -----------------------------------------------------------------------------------


def _to_plan(request: Request, chosen: Candidate, rejected: list[Candidate]) -> RunPlan:
    strategy, config = chosen.strategy, request.config
    engine, engine_reason = _engine(request, strategy)
    shares = math.ceil(
        request.global_batch_size * request.longest_tokens / request.world_size / chosen.num_tokens
    )
    available = budgets(request.profile, request.processes_per_node)
    decisions = (
        Decision(setting="engine", value=engine, reason=engine_reason),
        Decision(
            setting="strategy",
            value=strategy.label,
            reason="the fastest that fits" if rejected else "the fastest there is, and it fits",
        ),
        *request.basis.decisions,
        Decision(
            setting="training.max_tokens_per_device",
            value=str(chosen.num_tokens),
            reason=_tokens_reason(request, chosen),
        ),
        Decision(
            setting="training.global_batch_size",
            value=str(request.global_batch_size),
            reason=f"examples per step, the same on any hardware; at most {shares} micro-batch(es) "
            "for each process",
        ),
    )
    return RunPlan(
        profile=request.profile.name,
        device=request.profile.device,
        nodes=request.nodes,
        processes_per_node=request.processes_per_node,
        engine=engine,
        strategy=strategy.label,
        deepspeed_config=strategy.deepspeed_config,
        precision=request.basis.precision,
        tensors_gib=_gib(chosen.estimate.tensors),
        overrides={
            "model.quantization": request.basis.quantization,
            "training.gradient_checkpointing": strategy.checkpointing,
            "training.max_tokens_per_device": chosen.num_tokens,
            "training.global_batch_size": request.global_batch_size,
            "training.batch_size": None,
            "training.gradient_accumulation_steps": None,
            "training.deepspeed_config": strategy.deepspeed_config,
        },
        decisions=decisions,
        rejected=tuple(
            Rejection(
                strategy=candidate.strategy.label,
                reason=candidate.shortfall,
                device_gib=_gib(candidate.estimate.device),
            )
            for candidate in rejected
        ),
        usage=tuple(
            Usage(place=_PLACE_NAMES[place], gib=_gib(needed), available_gib=_gib(available[place]))
            for place, needed in _needs(chosen.estimate).items()
            if needed
        ),
        terms=tuple(
            TermLine(
                name=term.name,
                place=term.place,
                gib=_gib(term.bytes),
                when=term.when,
                source=term.source,
            )
            for term in chosen.estimate.terms
        ),
        notes=_notes(request, config),
    )


def _engine(request: Request, strategy: Strategy) -> tuple[EngineName, str]:
    if request.engine is not None:
        return request.engine, "as asked"
    if request.world_size == 1 and strategy.deepspeed_config is None:
        return "python", "one process needs no launcher"
    return "torchrun", "starts fastest, and starts DeepSpeed's ranks as well"


def _tokens_reason(request: Request, chosen: Candidate) -> str:
    if request.config.training.max_tokens_per_device is not None:
        return "set in the config"
    if chosen.num_tokens == _most_tokens(request):
        if chosen.num_tokens == request.longest_tokens:
            return "one example of data.max_length; longer rows are no faster here"
        return "more would be of no use"
    return "as many as fit"


def _notes(request: Request, config: Config) -> tuple[str, ...]:
    facts = request.facts
    notes = [
        "the data was not read: every row is taken to be full and every token to carry a label",
    ]
    if request.basis.quantization != "none":
        left = facts.frozen_parameters - facts.quantized_parameters - facts.embedding_parameters
        if left > 0.1 * facts.frozen_parameters:
            notes.append(
                f"{left / 1e9:.1f} of {facts.total_parameters / 1e9:.1f} billion weights stay in "
                "16 bits: bitsandbytes quantises linear layers, and these are fused experts"
            )
    if config.model.attention.startswith("flash_attention"):
        notes.append("activations were simulated with sdpa; flash attention needs no mask")
    return tuple(notes)


def _gib(value: float) -> float:
    return round(value / GIB, 3)
