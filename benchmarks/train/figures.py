"""Medians, ranges and ratios of what was timed. PURE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

_STABLE = 0.1
MOST_WARM_UP_ROUNDS = 3
# What a way may be off by, in units of what plain PEFT in bf16 is off by on the same rows.
NOISE = {"gradients": 1.5, "worst": 2.0, "loss": 2.0}
LEAST_NOISE = 2.0**-8  # one rounding of a bf16 number: plain PEFT may be closer by chance


@dataclass(frozen=True)
class Spread:
    """A median with its range."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


def is_warm(seconds: Sequence[float]) -> bool:
    """Tell whether a way has settled: its last two rounds within 10 %, or three rounds done."""
    if len(seconds) >= MOST_WARM_UP_ROUNDS:
        return True
    return len(seconds) >= 2 and abs(seconds[-1] - seconds[-2]) <= _STABLE * seconds[-2]


def one_time_seconds(warm_up: Sequence[float], rounds: Sequence[float]) -> float:
    """What the warm-up rounds took beyond the pace after them: paid once in a run."""
    return max(0.0, sum(warm_up) - len(warm_up) * median(rounds))


def speeds(tokens: int, rounds: Sequence[float]) -> list[float]:
    """Tokens per second of each round."""
    return [tokens / seconds for seconds in rounds]


def best_of(rounds: Mapping[str, Sequence[float]]) -> str | None:
    """Name the fastest: rounds of the same tokens, so the smallest median."""
    return min(rounds, key=lambda name: median(rounds[name])) if rounds else None


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times as fast the first is: of the medians, with the range of the paired rounds."""
    paired = [other / own for own, other in zip(ours, theirs, strict=True)]
    return Spread(median(theirs) / median(ours), min(paired), max(paired))


def allowed(noise: Mapping[str, float]) -> dict[str, float]:
    """Return the largest relative differences from the float32 reference that are rounding."""
    return {name: factor * max(noise[name], LEAST_NOISE) for name, factor in NOISE.items()}


def is_equal(found: Mapping[str, float], noise: Mapping[str, float]) -> bool:
    """Tell whether a way computes what plain PEFT does, up to the rounding of bf16."""
    return all(found[name] <= limit for name, limit in allowed(noise).items())
