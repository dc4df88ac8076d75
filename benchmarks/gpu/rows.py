"""The rows every contender trains on: made from numbers alone, the same wherever they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SPREAD = 0.8  # sigma of the lengths' logarithm: batches of eight, padded, are 40 % useful
_SHORTEST = 8
Row = tuple[NDArray[np.int32], NDArray[np.bool_]]


@dataclass(frozen=True)
class RowSpec:
    """What the rows are like. Unit: tokens."""

    vocabulary: int
    longest: int
    mean: int | None = None  # None: every row is `longest`; else log-normal, cut at `longest`
    labelled: float = 1.0  # share of a row that carries a loss, its end


def make_rows(spec: RowSpec, count: int, seed: int = 0) -> list[Row]:
    """Make `count` rows of (ids, loss mask)."""
    generator = np.random.default_rng(seed)
    if spec.mean is None:
        lengths = np.full(count, spec.longest)
    else:
        centre = math.log(spec.mean) - _SPREAD**2 / 2
        drawn = generator.lognormal(centre, _SPREAD, count).round().astype(int)
        lengths = drawn.clip(_SHORTEST, spec.longest)
    rows = []
    for length in lengths:
        ids = generator.integers(3, spec.vocabulary, length).astype(np.int32)
        rows.append((ids, np.arange(length) >= length * (1 - spec.labelled)))
    return rows
