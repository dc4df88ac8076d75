"""Which examples a step sees, and how they are packed and split over ranks. Pure.

Everything here depends on prepared metadata alone (lengths, order keys), so every rank computes
the same answer without talking to the others. The examples of a step depend on the seed and the
step only; the hardware decides how they are split, which changes nothing that is learned.

Letters: N examples, G global batch size, W world size, K micro-batches per rank and step.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
# [rank][micro-batch] -> positions of the examples in it
Assignment = list[list[list[int]]]


def num_steps(num_examples: int, epochs: float, global_batch_size: int) -> int:
    """Optimizer steps that show every example `epochs` times; the last one may run over."""
    return max(1, math.ceil(round(num_examples * epochs, 6) / global_batch_size))


def epochs_seen(step: int, num_examples: int, global_batch_size: int) -> float:
    """Passes over the data after `step` optimizer steps."""
    return step * global_batch_size / num_examples


@lru_cache(maxsize=4)
def _shuffled(epoch: int, num_examples: int, seed: int) -> Indices:
    """A seeded permutation; kept, since one epoch serves many steps."""
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_examples)
    order.flags.writeable = False
    return order.astype(np.int64, copy=False)


def curriculum_order(order_keys: NDArray[np.float64]) -> Indices:
    """Easy first: ascending keys, ties in file order.

    Shapes: (N,) -> (N,)
    """
    return np.argsort(order_keys, kind="stable").astype(np.int64)


def examples_of_step(
    step: int,
    *,
    num_examples: int,
    global_batch_size: int,
    seed: int,
    fixed_order: Indices | None = None,
) -> Indices:
    """Exactly `global_batch_size` example indices for optimizer step `step` (from 0).

    The order is a seeded shuffle, new in every epoch, or `fixed_order` (N,) in all of them.
    Epochs follow each other without a gap: a step that reaches the end of one takes its last
    examples from the beginning of the next, so no example is dropped or padded.

    Shapes: -> (G,)
    """
    parts: list[Indices] = []
    position, missing = step * global_batch_size, global_batch_size
    while missing:
        epoch, offset = divmod(position, num_examples)
        order = _shuffled(epoch, num_examples, seed) if fixed_order is None else fixed_order
        part = order[offset : offset + missing]
        parts.append(part)
        position, missing = position + len(part), missing - len(part)
    return np.concatenate(parts)


def assign(
    lengths: NDArray[np.int32], world_size: int, max_tokens: int, max_examples: int | None = None
) -> Assignment:
    """Split examples into W x K micro-batches of at most `max_tokens` tokens, evenly filled.

    K is as small as packing gets it, and the same on every rank (ZeRO's collectives need that). A
    rank may get an empty micro-batch when there are fewer examples than places.

    Shapes: lengths (G,) -> [W][K] lists of positions 0..G-1, each in ascending order
    Raises: ValueError when one example alone is longer than `max_tokens`.
    """
    if len(lengths) and int(lengths.max()) > max_tokens:
        raise ValueError(f"an example of {int(lengths.max())} tokens exceeds {max_tokens}")
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    longest_first = list(zip(order.tolist(), lengths[order].tolist(), strict=True))
    low = max(1, math.ceil(int(lengths.sum()) / (world_size * max_tokens)))
    even = _fill_evenly(longest_first, low * world_size, max_tokens, max_examples)
    if even is not None:  # as it nearly always is
        return _deal(lengths, even, world_size)
    tight = _fill_tightly(longest_first, max_tokens, max_examples)
    high = max(1, math.ceil(len(tight) / world_size))
    # Tight bins always fit; even ones are wanted, and may fit into fewer.
    best = tight + [[]] * (high * world_size - len(tight))
    low += 1
    while low <= high:
        middle = (low + high) // 2
        even = _fill_evenly(longest_first, middle * world_size, max_tokens, max_examples)
        if even is None:
            low = middle + 1
        else:
            best, high = even, middle - 1
    return _deal(lengths, best, world_size)


def _fill_tightly(
    longest_first: list[tuple[int, int]], max_tokens: int, max_examples: int | None
) -> list[list[int]]:
    """Longest example first, each into the fullest bin that takes it: few bins.

    Source: best-fit decreasing; it uses at most 11/9 of the fewest bins, plus one.
    """
    bins: list[list[int]] = []
    open_bins: list[tuple[int, int]] = []  # (room left, bin), ascending
    for position, length in longest_first:
        place = bisect_left(open_bins, (length, -1))
        if place < len(open_bins):
            room, number = open_bins.pop(place)
        else:
            room, number = max_tokens, len(bins)
            bins.append([])
        bins[number].append(position)
        if max_examples is None or len(bins[number]) < max_examples:
            insort(open_bins, (room - length, number))
    return bins


def _fill_evenly(
    longest_first: list[tuple[int, int]],
    num_bins: int,
    max_tokens: int,
    max_examples: int | None,
) -> list[list[int]] | None:
    """Longest example first, each into the emptiest bin; None when one does not fit.

    The emptiest bin has the most room left, so when it cannot take an example no bin can.
    Source: Graham's LPT rule; its fullest bin is at most 4/3 of the optimum.
    """
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    heap = [(0, number) for number in range(num_bins)]
    for position, length in longest_first:
        while max_examples is not None and len(bins[heap[0][1]]) >= max_examples:
            heapq.heappop(heap)
            if not heap:
                return None
        tokens, number = heap[0]
        if tokens + length > max_tokens:
            return None
        bins[number].append(position)
        heapq.heapreplace(heap, (tokens + length, number))
    return bins


def _deal(lengths: NDArray[np.int32], bins: list[list[int]], world_size: int) -> Assignment:
    """Give bins to ranks so that micro-batch k is about as long on every rank.

    Ranks wait for each other at each micro-batch under ZeRO-3, so neighbours in size go to the
    same k; the direction alternates so that no rank always gets the longer one.
    """
    sizes = lengths.tolist()
    by_size = sorted(bins, key=lambda members: -sum(map(sizes.__getitem__, members)))
    ranks: Assignment = [[] for _ in range(world_size)]
    for start in range(0, len(by_size), world_size):
        row = by_size[start : start + world_size]
        if (start // world_size) % 2:
            row.reverse()
        for rank, members in enumerate(row):
            ranks[rank].append(sorted(members))
    return ranks
