"""How long ranks may take from a request to stop until they have saved and ended. PURE.

One number for everything that would kill them: torchrun, this launcher, Kubernetes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.profile import Profile
from trainer.model_facts import ModelFacts

LEAST_SECONDS = 120
"""Adapters are written in seconds; the rest is for a busy machine."""
WRITE_BYTES_PER_SECOND = 100e6
"""A network volume nobody paid extra for. Source: AWS EBS gp3, whose baseline is 125 MiB/s."""
_PREDICTION_FACTOR = 2.0
_MEASUREMENT_FACTOR = 3.0
"""Over a measured save: the next one may meet a volume that others use as well."""
_UTILISATION = 0.1
"""Of a GPU's peak; large runs reach 0.2 to 0.5. Source: PaLM (arXiv 2204.02311), table 3."""
_PEAK_FLOPS = {"cuda": 65e12, "mps": 2.6e12}
"""Where a profile states none. Source: NVIDIA T4 (fp16 tensor cores); Apple M1 (fp32)."""
_CPU_FLOPS = 80e9
"""SmolLM2-135M at 100 tokens/s on two cores. Source: docs/log.md."""
_HEARD_AFTER_MICRO_BATCHES = 2
"""Ranks agree to stop between micro-batches, and the answer comes one late."""


@dataclass(frozen=True)
class Grace:
    """A shutdown timeout and why it is what it is."""

    seconds: int
    reason: str


def shutdown_grace(
    *, checkpoint_bytes: float, micro_batch_seconds: float, last_save_seconds: float | None
) -> Grace:
    """Return the longest of the least there is, what is predicted, and what a save has taken."""
    computing = _HEARD_AFTER_MICRO_BATCHES * micro_batch_seconds
    writing = checkpoint_bytes / WRITE_BYTES_PER_SECOND
    predicted = _PREDICTION_FACTOR * (computing + writing)
    measured = _MEASUREMENT_FACTOR * (last_save_seconds or 0.0)
    parts = (
        f"a micro-batch {micro_batch_seconds:.0f} s, a checkpoint {checkpoint_bytes / 1e9:.1f} GB "
        f"at {WRITE_BYTES_PER_SECOND / 1e6:.0f} MB/s"
    )
    longest = max(
        (float(LEAST_SECONDS), f"the least, and more than it takes ({parts})"),
        (predicted, f"twice what it takes on slow hardware ({parts})"),
        (measured, f"{_MEASUREMENT_FACTOR:.0f} x the last save ({last_save_seconds or 0:.0f} s)"),
        key=lambda found: found[0],
    )
    return Grace(math.ceil(longest[0]), longest[1])


def micro_batch_seconds(
    facts: ModelFacts, num_tokens: int, *, flops_per_second: float, relative_time: float
) -> float:
    """Estimate forward and backward pass of one micro-batch, generously.

    `relative_time`: of the strategy, one process without checkpointing being 1.
    Source: 6N a token, and 12 x layers x hidden size x tokens for attention (arXiv 2204.02311,
    appendix B); every expert of a mixture is counted.
    """
    attention = 12 * facts.num_layers * facts.hidden_size * num_tokens
    per_token = 6 * facts.total_parameters + attention
    return relative_time * per_token * num_tokens / flops_per_second


def slow_flops_per_second(profile: Profile) -> float:
    """Return what one device of a profile computes at least, when it trains."""
    if profile.device == "cpu":
        return _CPU_FLOPS
    stated = profile.gpu.peak_bf16_tflops if profile.gpu is not None else None
    return _UTILISATION * (_PEAK_FLOPS[profile.device] if stated is None else stated * 1e12)
