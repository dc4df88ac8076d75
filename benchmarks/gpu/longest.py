"""The longest context that trains within a given memory: one row, found by bisection."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.case import Case
from benchmarks.gpu.clock import give_back, peak, reset_peak
from benchmarks.gpu.jobs import Job, Result
from benchmarks.gpu.ours import Stepper
from benchmarks.gpu.rows import RowSpec, make_rows

_PRECISE = 0.02  # of the length: near enough
_NEAR = 1.06  # steps away from a guess
_MULTIPLE = 64  # tokens
_GROWTH = 1.5  # of a trial's time with its length, between that of the layers and of attention
_SAFE = 0.98  # of the memory: a guess that fits is worth more than one that does not


def measure(job: Job, folder: Path) -> Result:
    """Try rows of one length after another, until the time of the case is over.

    The optimizer's state is in memory, as it is from the second step of a run on.
    """
    case, first, most = Case.from_json(job["case"]), job["first"], job["most"]
    stepper = Stepper(case, folder)
    device = stepper.trainer.args.device
    trials: list[dict[str, Any]] = []

    def fits(tokens: int) -> bool:
        rows = make_rows(RowSpec(case.rows.vocabulary, tokens), 1)
        reset_peak(device)
        started = time.perf_counter()
        try:
            stepper.backward([rows])
            is_in = True
        except torch.OutOfMemoryError:
            is_in = False
        stepper.trainer.model.zero_grad()
        measured = {"tokens": tokens, "fits": is_in, **peak(device)}
        trials.append({**measured, "seconds": time.perf_counter() - started})
        give_back(device)
        return is_in

    assert fits(first), f"not even {first} tokens fit"
    stepper.update()
    guess = None
    if case.memory_gib is not None and fits(2 * first) and device.type == "cuda":
        guess = _SAFE * extrapolate(trials[-2], trials[-1], case.memory_gib)
    deadline = time.perf_counter() + case.seconds

    def is_over(tokens: int) -> bool:
        last = trials[-1]
        expected = last["seconds"] * (tokens / last["tokens"]) ** _GROWTH
        return time.perf_counter() + float(expected) > deadline

    low = max(trial["tokens"] for trial in trials if trial["fits"])
    low, high = bisect_longest(fits, low, most, is_over, guess=guess)
    return {"longest": low, "too_long": high, "trials": trials}


def extrapolate(short: dict[str, Any], long: dict[str, Any], memory_gib: float) -> float:
    """Tokens that fill the memory, if each takes what it took between two lengths."""
    per_token = (long["peak_gib"] - short["peak_gib"]) / (long["tokens"] - short["tokens"])
    return float(long["tokens"] + (memory_gib - long["peak_gib"]) / per_token)


def bisect_longest(
    fits: Callable[[int], bool],
    low: int,
    most: int,
    is_over: Callable[[int], bool],
    *,
    guess: float | None = None,
) -> tuple[int, int | None]:
    """Return a length that fits and one that does not (None: `most` fits, or time was over).

    Steps away from the guess, or doubles without one, until both are known; then halves the gap.
    `low` is known to fit.
    """
    known, high = low, None
    factor = 2.0 if guess is None else _NEAR
    trial: float = 2 * low if guess is None else max(guess, low + _MULTIPLE)
    while True:
        tokens = min(most, int(trial) // _MULTIPLE * _MULTIPLE)
        if not low < tokens < (high or most + 1) or is_over(tokens):
            return low, high
        if fits(tokens):
            low = tokens
        else:
            high = tokens
        if high is None:
            trial = max(low * factor, low + _MULTIPLE)
        elif low == known and guess is not None:
            trial = min(high / factor, high - _MULTIPLE)
        elif high - low <= max(_MULTIPLE, _PRECISE * low):
            return low, high
        else:
            trial = (low + high) / 2
