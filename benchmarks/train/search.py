"""The search for the best attention and batch of a peer. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from benchmarks.train.ways import Attention, Choice

BATCHES = (1, 2, 4, 8, 16)
_WORSE = 1.1  # times the best of the same attention: larger batches are not tried


def next_trial(tried: Mapping[Choice, float | None], largest: int) -> Choice | None:
    """Return what to try next; None when the best is known.

    For each attention the batches go up until one is clearly slower than a smaller one, or fails.
    `tried`: seconds of a step, None where it could not be had. `largest`: units of a step.
    """
    for attention in get_args(Attention):
        best = float("inf")
        for batch in BATCHES:
            if batch > largest:
                break
            choice = Choice(attention, batch)
            if choice not in tried:
                return choice
            seconds = tried[choice]
            if seconds is None or seconds > _WORSE * best:
                break
            best = min(best, seconds)
    return None


def best_trial(tried: Mapping[Choice, float | None]) -> Choice | None:
    """Return the fastest; None when nothing ran."""
    ran = {choice: seconds for choice, seconds in tried.items() if seconds is not None}
    return min(ran, key=lambda choice: ran[choice]) if ran else None
