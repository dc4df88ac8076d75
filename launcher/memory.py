"""The memory model: what a run needs, term by term. PURE.

Every term has a name, a place, bytes and where the formula comes from. Places:
  device   of one process: a GPU's memory, or the process's own on a CPU
  pinned   host memory of one node that cannot be swapped out
  host     other host memory of one node
  nvme     of one node
  disk     of the run directory
Letters: P trained parameters, W processes, c bytes of the compute precision (2 or 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from launcher.strategy import Strategy
from trainer.model_facts import Casting, ModelFacts, activation_key

GIB = 2**30
Place = Literal["device", "pinned", "host", "nvme", "disk"]
When = Literal["always", "micro-batch", "optimizer step"]

# Bytes of state per trained parameter.
OPTIMIZER_BYTES = {
    "adamw_torch": 8.0,  # two moments in fp32
    "adamw_torch_fused": 8.0,
    "paged_adamw_32bit": 8.0,  # may be paged out, counted as if it were not
    "adamw_8bit": 2.04,  # two moments of one byte, and a scale in fp32 per 256 values
    "paged_adamw_8bit": 2.04,
    "adafactor": 0.1,  # one row and one column of a matrix
    "sgd": 0.0,
}
# Temporaries of one update. torch's multi-tensor AdamW holds sqrt(v) of all parameters at once
# (torch.optim docs, `foreach`: "uses ~ sizeof(params) more peak memory"); fused kernels hold none.
_STEP_TEMPORARY_BYTES = {"adamw_torch": 4.0, "adafactor": 4.0, "sgd": 4.0}


@dataclass(frozen=True)
class Term:
    """One thing that takes memory."""

    name: str
    bytes: float
    source: str
    place: Place = "device"
    when: When = "always"


@dataclass(frozen=True)
class Job:
    """What is trained and how much of it at a time; the same on any hardware but `num_tokens`."""

    facts: ModelFacts
    is_lora: bool
    precision_bytes: int
    """Of the compute precision: 2 or 4."""
    optimizer: str
    num_tokens: int
    """Of one micro-batch."""
    num_labels: int
    kept_checkpoints: int
    merges: bool
    loads_best: bool


@dataclass(frozen=True)
class Machine:
    """What the memory model must know of the hardware. Unit: bytes, per process or per node."""

    is_gpu: bool
    world_size: int
    processes_per_node: int
    context_bytes: float
    """Per process, outside the allocator: CUDA context; on a CPU the imported libraries."""
    communication_bytes: float
    """Per process, with two or more."""
    host_process_bytes: float
    """Of host memory per process, on a GPU machine."""


@dataclass(frozen=True)
class MemoryEstimate:
    """All terms, and their sums."""

    terms: tuple[Term, ...]

    def total(self, place: Place, *, without: tuple[str, ...] = ()) -> float:
        """Peak of one place: what is always there, and the larger of the two phases."""
        here = [term for term in self.terms if term.place == place and term.name not in without]

        def during(when: When) -> float:
            return sum(term.bytes for term in here if term.when == when)

        return during("always") + max(during("micro-batch"), during("optimizer step"))

    @property
    def device(self) -> float:
        return self.total("device")

    @property
    def host(self) -> float:
        """Pinned and other host memory of one node together."""
        return self.total("pinned") + self.total("host")

    @property
    def tensors(self) -> float:
        """What `torch.cuda.max_memory_allocated` would say."""
        return self.total("device", without=_OUTSIDE_ALLOCATOR)


_CONTEXT, _COMMUNICATION, _SLACK = "process and libraries", "communication", "allocator slack"
_OUTSIDE_ALLOCATOR = (_CONTEXT, _COMMUNICATION, _SLACK)
# Freed blocks that do not fit the next request: rows differ in length at every micro-batch, so
# pieces of many sizes come and go. On a GPU a part of the activations (reserved over allocated); on
# a CPU glibc keeps about what the layers make in one pass, checkpointed or not: fitted to the runs
# in docs/memory.md, 0.65 to 1.07 for adapters and 0.25 for full fine-tuning.
_GPU_SLACK = 0.08
_CPU_SLACK = {"lora": 1.0, "full": 0.45}
# Pinned buffers, one per tensor, are rounded up to powers of two: 1.1 to 1.4 for Llama's shapes.
_PIN_ROUNDING = 1.5
# aio buffers of ZeRO-Infinity: fp32 master, two moments, gradient, and one in flight.
_NVME_BUFFERS = 5
_CUBLAS_WORKSPACE = 32 * 2**20  # Hopper's, four times that of older cards. Source: torch docs, CUDA


def estimate_memory(job: Job, strategy: Strategy, machine: Machine) -> MemoryEstimate:
    """Estimate one process's device memory, and one node's host memory and disk."""
    terms = [
        *_process(machine),
        *_weights(job, strategy, machine),
        *_training_state(job, strategy, machine),
        *_activations(job, strategy, machine),
        *_checkpoint_copy(job, machine),
        *_disk(job),
    ]
    return MemoryEstimate(tuple(term for term in terms if term.bytes > 0))


def _process(machine: Machine) -> list[Term]:
    context = "CUDA context and kernels" if machine.is_gpu else "Python, torch and transformers"
    terms = [Term(_CONTEXT, machine.context_bytes, f"profile: {context}")]
    if machine.world_size > 1:
        terms.append(Term(_COMMUNICATION, machine.communication_bytes, "profile: NCCL"))
    if machine.is_gpu:
        terms.append(Term("cuBLAS workspace", _CUBLAS_WORKSPACE, "torch docs, notes/cuda"))
        terms.append(
            Term(
                "processes",
                machine.host_process_bytes * machine.processes_per_node,
                "profile: libraries of each process",
                "host",
            )
        )
    return terms


def _weights(job: Job, strategy: Strategy, machine: Machine) -> list[Term]:
    facts, zero, node = job.facts, strategy.zero, machine.processes_per_node
    buffers = Term("buffers", facts.buffer_bytes, "shapes")
    if zero.stage < 3:
        return [buffers, Term("frozen weights", facts.frozen_bytes, "shapes: storage as loaded")]
    share = facts.frozen_bytes / machine.world_size
    name = "frozen weights"
    frozen = {
        "device": Term(name, share, "ZeRO-3: 1/W of the storage"),
        "cpu": Term(name, node * share * _PIN_ROUNDING, "ZeRO-3 offload: pinned", "pinned"),
        "nvme": Term(name, node * share, "ZeRO-Infinity: on disk", "nvme"),
    }[zero.parameters_on]
    return [
        buffers,
        frozen,
        Term(
            "gathered weights",
            _gathered_bytes(job, strategy),
            "ZeRO-3: kept for reuse, in use, prefetched (stage3_max_reuse_distance, "
            "stage3_prefetch_bucket_size)",
            when="micro-batch",
        ),
        # Every rank reads whole shards before it cuts them; a node shares the page cache.
        Term(
            "weights while loading",
            facts.total_parameters * job.precision_bytes,
            "transformers, ZeRO-3",
            "host",
        ),
    ]


def _gathered_bytes(job: Job, strategy: Strategy) -> float:
    """Bound the parameters that are whole on a device at one time.

    Source: deepspeed 0.19 zero/partitioned_param_coordinator.py: kept while the next use is nearer
    than the reuse distance; prefetched up to the bucket, through a flat copy.
    """
    facts, zero, c = job.facts, strategy.zero, job.precision_bytes
    trained = facts.trainable_parameters * c
    in_layers = facts.frozen_parameters + facts.trainable_parameters - facts.embedding_parameters
    ends = facts.embedding_parameters * c
    layers = facts.frozen_bytes + trained - ends
    density = max(0.0, layers) / max(1, in_layers)  # bytes a parameter: less than c in 4 bits
    near = zero.reuse_distance + facts.largest_matrix_parameters + 2 * zero.prefetch_bucket
    return min(float(layers), near * density) + ends


def _training_state(job: Job, strategy: Strategy, machine: Machine) -> list[Term]:
    if strategy.zero.stage == 0:
        return _plain_state(job, machine)
    return _zero_state(job, strategy, machine)


def _plain_state(job: Job, machine: Machine) -> list[Term]:
    p = job.facts.trainable_parameters
    terms = [
        Term("trained weights", 4.0 * p, "fp32"),
        Term("gradients", 4.0 * p, "fp32, kept between micro-batches"),
        Term("optimizer state", OPTIMIZER_BYTES[job.optimizer] * p, job.optimizer),
        _update_temporaries(job, machine, p),
    ]
    if machine.world_size > 1:
        terms.append(Term("DDP buckets", 4.0 * p, "torch DDP: gradients once more, flat"))
    return terms


def _update_temporaries(job: Job, machine: Machine, num_updated: float) -> Term:
    per_parameter = _STEP_TEMPORARY_BYTES.get(job.optimizer, 0.0)
    source = "torch multi-tensor update"
    if not machine.is_gpu:  # there torch goes from tensor to tensor, with three temporaries each
        num_updated = 3 * min(num_updated, job.facts.largest_trained_parameters)
        source = "torch update of the largest tensor"
    return Term("update temporaries", per_parameter * num_updated, source, when="optimizer step")


def _zero_state(job: Job, strategy: Strategy, machine: Machine) -> list[Term]:
    p, c, zero = job.facts.trainable_parameters, job.precision_bytes, strategy.zero
    share = p / machine.world_size
    return [
        _zero_weights(job, strategy, machine),
        *_zero_gradients(job, strategy, machine),
        *_zero_optimizer(job, strategy, machine, share),
        Term(
            "reduce buckets",
            # Stage 1 in bf16 reduces without; 2 has a second one that fills meanwhile.
            float(c * zero.reduce_bucket * {1: 0, 2: 2, 3: 1}[zero.stage]),
            "deepspeed 0.19: reduce_bucket_size",
        ),
    ]


def _zero_weights(job: Job, strategy: Strategy, machine: Machine) -> Term:
    p, c, zero = job.facts.trainable_parameters, job.precision_bytes, strategy.zero
    name, share = "trained weights", c * p / machine.world_size
    if zero.stage < 3:
        return Term(name, float(c * p), "DeepSpeed: in the compute precision, flat")
    if zero.parameters_on == "device":
        return Term(name, share, "ZeRO-3: 1/W, in the compute precision")
    per_node = share * machine.processes_per_node
    if zero.parameters_on == "cpu":
        return Term(name, _pinned(share) * machine.processes_per_node, "ZeRO-3 offload", "pinned")
    return Term(name, per_node, "ZeRO-Infinity", "nvme")


def _zero_gradients(job: Job, strategy: Strategy, machine: Machine) -> list[Term]:
    p, zero = job.facts.trainable_parameters, strategy.zero
    share = 4.0 * p / machine.world_size
    if zero.optimizer_on == "device":
        size = 4.0 * p if zero.stage == 1 else share
        return [Term("gradients", size, f"ZeRO-{zero.stage}: fp32, kept between micro-batches")]
    # Once where they are gathered, once where the update reads them.
    node = 2 * _pinned(share) * machine.processes_per_node
    terms = [Term("gradients", node, "ZeRO-Offload: fp32, twice", "pinned")]
    if zero.stage == 2:
        terms.append(Term("gradients", share, "ZeRO-2 offload: fp32, 1/W"))
    return terms


def _zero_optimizer(job: Job, strategy: Strategy, machine: Machine, share: float) -> list[Term]:
    zero = strategy.zero
    state = (4.0 + OPTIMIZER_BYTES[job.optimizer]) * share
    name, source = "optimizer state", "fp32 master weights and moments, 1/W"
    per_node = state * machine.processes_per_node
    if zero.optimizer_on == "cpu":
        return [Term(name, per_node, source, "host")]
    if zero.optimizer_on == "nvme":
        group = min(share, zero.sub_group)
        buffers = _NVME_BUFFERS * 4.0 * group * machine.processes_per_node
        return [
            Term(name, per_node, source, "nvme"),
            Term("swap buffers", buffers, "ZeRO-Infinity: buffer_count x sub_group_size", "pinned"),
        ]
    updated = share if zero.stage < 3 else min(share, zero.sub_group)
    copy = Term("gradients, flat", 4.0 * updated, "DeepSpeed: one copy", when="optimizer step")
    return [Term(name, state, source), copy, _update_temporaries(job, machine, updated)]


def _pinned(size: float) -> float:
    """Round one pinned buffer up as torch's host allocator does: to a power of two."""
    return float(2 ** math.ceil(math.log2(size))) if size > 1 else size


def _activations(job: Job, strategy: Strategy, machine: Machine) -> list[Term]:
    casting: Casting = "autocast" if strategy.zero.stage == 0 else "cast"

    def peak(*, checkpointing: bool) -> float:
        measured = job.facts.activations[activation_key(casting, checkpointing=checkpointing)]
        return measured.peak(job.num_tokens, job.num_labels)

    used = peak(checkpointing=strategy.checkpointing)
    kept = _CPU_SLACK["lora" if job.is_lora else "full"]
    slack = (
        Term(_SLACK, _GPU_SLACK * used, "torch's caching allocator", when="micro-batch")
        if machine.is_gpu
        else Term(_SLACK, kept * peak(checkpointing=False), "glibc", when="micro-batch")
    )
    source = f"simulated: {job.num_tokens} tokens, {job.num_labels} labels"
    return [Term("activations and logits", used, source, when="micro-batch"), slack]


def _checkpoint_copy(job: Job, machine: Machine) -> list[Term]:
    """Return what rank 0 holds while an adapter's checkpoint is written beside the training."""
    if not job.is_lora:
        return []
    size = (4.0 + OPTIMIZER_BYTES[job.optimizer]) * job.facts.trainable_parameters
    source = "rank 0: fp32 weights and moments"
    if machine.is_gpu:
        return [Term("checkpoint copy", size, source, "host")]
    return [Term("checkpoint copy", size, source, when="micro-batch")]


def _disk(job: Job) -> list[Term]:
    facts = job.facts
    weights = 4.0 * facts.trainable_parameters
    state = weights + OPTIMIZER_BYTES[job.optimizer] * facts.trainable_parameters
    copies = 1 + (1 if job.loads_best else 0)
    terms = [
        # One more while the newest is written and the oldest not yet deleted.
        Term("checkpoints", (job.kept_checkpoints + 1) * state, "weights and moments", "disk"),
        Term("final and best weights", copies * weights, "fp32", "disk"),
    ]
    if job.merges:
        merged = 2.0 * facts.total_parameters
        terms.append(Term("merged model", merged, "16 bits a parameter", "disk"))
    return terms
