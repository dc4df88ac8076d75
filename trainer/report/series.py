"""Logged numbers by step, and long ones thinned out. PURE."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from trainer.report.values import Json, as_finite, as_number

Point = tuple[float, float]
"""Step and value. A value that is not finite is NaN: a gap in the curve."""

MAX_POINTS = 800
"""Of one curve: more than a screen has columns for it."""
MAX_MEANS = 120


def read_series(lines: Iterable[Json], key: str) -> tuple[Point, ...]:
    """Return one number of the lines that have it, by step."""
    found = []
    for line in lines:
        step, value = as_finite(line.get("step")), as_number(line.get(key))
        if step is not None and value is not None:
            found.append((step, value if math.isfinite(value) else math.nan))
    return tuple(found)


def read_curve(lines: Iterable[Json], key: str) -> tuple[Point, ...]:
    """Return a number by step, as `read_series`, but of the weights that each step left.

    Evaluations after the end are of the best weights. They count where there are no others.
    """
    has_ended = False
    during: list[Json] = []
    after: list[Json] = []
    for line in lines:
        if "train_loss" in line:
            has_ended = True
        elif "loss" in line:
            has_ended = False  # the run went on
        (after if has_ended and key.startswith("eval_") else during).append(line)
    return read_series(during, key) or read_series(after, key)


def step_of(line: Json) -> float | None:
    """Return the step whose weights a line of answers is about."""
    weights = as_finite(line.get("weights_of_step"))
    return as_finite(line.get("step")) if weights is None else weights


def newest_by_step(lines: Iterable[Json]) -> dict[float, Json]:
    """Return the lines by the step of their weights, each step's last, in the order written."""
    found: dict[float, Json] = {}
    for line in lines:
        step = step_of(line)
        if step is not None:
            found.pop(step, None)
            found[step] = line
    return found


def finite_values(points: Iterable[Point]) -> list[float]:
    """Return the values without gaps."""
    return [value for _, value in points if math.isfinite(value)]


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> tuple[Point, ...]:
    """Return at most `limit` points: of each bin the smallest and the largest, and a gap.

    The first and the last point always stay.
    """
    if len(points) <= limit:
        return tuple(points)
    num_bins = max((limit - 2) // 3, 1)
    inner = points[1:-1]
    edges = [len(inner) * number // num_bins for number in range(num_bins + 1)]
    kept = [points[0]]
    for start, end in itertools.pairwise(edges):
        kept += _extremes(inner[start:end])
    return (*kept, points[-1])


def smooth(points: Sequence[Point], limit: int = MAX_MEANS) -> tuple[Point, ...]:
    """Return the mean of each of `limit` bins, at its middle; nothing for a curve without noise.

    Few points show their course by themselves.
    """
    if len(points) < 2 * limit:
        return ()
    edges = [len(points) * number // limit for number in range(limit + 1)]
    means = []
    for start, end in itertools.pairwise(edges):
        values = finite_values(points[start:end])
        value = sum(values) / len(values) if values else math.nan
        means.append((points[(start + end) // 2][0], value))
    return tuple(means)


def _extremes(points: Sequence[Point]) -> list[Point]:
    chosen: set[int] = set()
    finite = [index for index, (_, value) in enumerate(points) if math.isfinite(value)]
    if finite:
        chosen |= {min(finite, key=lambda index: points[index][1])}
        chosen |= {max(finite, key=lambda index: points[index][1])}
    if len(finite) < len(points):
        chosen.add(next(index for index, (_, value) in enumerate(points) if math.isnan(value)))
    return [points[index] for index in sorted(chosen)]
