"""PURE: which rows are train, validation, test, and how often a training row is seen per epoch.

Shapes: R rows of the training sources, N examples (a split row makes several), S sources.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.errors import DataError

TRAIN, VALIDATION, TEST = 0, 1, 2


def split_rows(
    sources: NDArray[np.int32], validation: float, test: float, seed: int
) -> NDArray[np.int8]:
    """Assign every row to a split, each source giving its share.

    Shapes: sources (R,) -> (R,). Units: a share below 1 is a fraction of the rows, else a count.
    Raises: DataError when the training split would be empty.
    """
    num_rows = len(sources)
    counts = [_count("validation_size", validation, num_rows), _count("test_size", test, num_rows)]
    if sum(counts) >= num_rows and sum(counts) > 0:
        raise DataError(
            f"data.validation_size ({validation:g}) and data.test_size ({test:g}) take "
            f"{sum(counts)} of the {num_rows} rows of the training sources",
            rule="at least one row must be left to train on",
            fix="make them smaller",
        )
    assigned = np.full(num_rows, TRAIN, np.int8)
    generator = np.random.Generator(np.random.PCG64(seed))
    names, sizes = np.unique(sources, return_counts=True)
    shuffled = [generator.permutation(np.flatnonzero(sources == name)) for name in names]
    left = sizes.copy()
    for split, count in ((VALIDATION, counts[0]), (TEST, counts[1])):
        for index, taken in enumerate(_apportion(count, sizes, left)):
            assigned[shuffled[index][left[index] - taken : left[index]]] = split
            left[index] -= taken
    return assigned


def _count(name: str, share: float, num_rows: int) -> int:
    if share >= 1 and share != int(share):
        raise DataError(
            f"data.{name}: {share:g} is neither a fraction nor a count",
            rule="below 1 it is a fraction of the rows, from 1 on a whole number of rows",
            fix=f"write {share:.0f} for that many rows",
        )
    # A fraction asked for is never nothing: evaluating on no row would go unnoticed.
    return int(share) if share >= 1 else max(round(share * num_rows), 1 if share > 0 else 0)


def _apportion(count: int, sizes: NDArray[np.int64], left: NDArray[np.int64]) -> NDArray[np.int64]:
    """Divide `count` in proportion to `sizes`, largest remainders first, at most `left` each."""
    exact: NDArray[np.float64] = count * sizes / max(1, sizes.sum())
    taken: NDArray[np.int64] = np.minimum(np.floor(exact).astype(np.int64), left)
    order = np.argsort(-(exact - np.floor(exact)), kind="stable")
    while taken.sum() < count:
        for index in order:
            if taken.sum() < count and taken[index] < left[index]:
                taken[index] += 1
    return taken


def weighted_indices(
    sources: NDArray[np.int32], weights: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """Repeat or thin out examples by their source's weight, in the given order.

    Shapes: sources (N,), weights (S,) -> (M,) positions in `sources`, ascending.
    A weight of 2.5 shows every example twice and a seeded half of them once more.
    """
    repeats = np.zeros(len(sources), np.int64)
    for source, weight in enumerate(weights):
        members = np.flatnonzero(sources == source)
        repeats[members] = int(weight)
        extra = round((weight - int(weight)) * len(members))
        if extra:
            generator = np.random.Generator(np.random.PCG64([seed, source]))
            repeats[generator.permutation(members)[:extra]] += 1
    return np.repeat(np.arange(len(sources), dtype=np.int64), repeats)
