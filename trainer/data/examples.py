"""Bringing tokenised texts to at most `max_length` tokens.

Shapes: N texts, T tokens before, E examples, U tokens of all examples together.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trainer.data.problems import TOO_LONG_SKIPPED, RowProblem
from trainer.data.tokenise import Tokens

TooLong = Literal["truncate", "split", "skip"]


@dataclass(frozen=True)
class Fitted:
    """Examples, back to back, and the texts that made none."""

    ids: NDArray[np.int32]  # (U,)
    mask: NDArray[np.uint8]  # (U,)
    lengths: NDArray[np.int32]  # (E,)
    num_labels: NDArray[np.int32]  # (E,) after the shift: mask[1:].sum()
    texts: NDArray[np.int64]  # (E,) position of the example's text
    truncated: NDArray[np.bool_]  # (E,)
    problems: list[tuple[int, RowProblem]]  # position of the text, what is wrong


def fit(tokens: Tokens, limit: int, too_long: TooLong, *, splits: bool) -> Fitted:
    """Truncate, split or leave out what is longer than `limit`, and what has nothing to learn."""
    ids, mask, lengths = tokens
    ends = np.cumsum(lengths)
    starts = ends - lengths
    odd = (lengths > limit) | (_num_labels(mask, starts, ends) == 0)
    examples = [(text, 0, int(lengths[text])) for text in np.flatnonzero(~odd).tolist()]
    problems: list[tuple[int, RowProblem]] = []
    for text in np.flatnonzero(odd).tolist():
        try:
            bounds = _bounds(mask[starts[text] : ends[text]], limit, too_long, splits)
        except RowProblem as problem:
            problems.append((text, problem))
            continue
        examples += [(text, start, end) for start, end in bounds]
    texts, first, last = np.array(sorted(examples), np.int64).reshape(-1, 3).T
    if odd.any():
        kept = np.zeros(len(ids) + 1, np.int8)
        np.add.at(kept, starts[texts] + first, 1)
        np.add.at(kept, starts[texts] + last, -1)
        is_kept = np.cumsum(kept[:-1]) > 0
        ids, mask = ids[is_kept], mask[is_kept]
    new_lengths = last - first
    new_ends = np.cumsum(new_lengths)
    alone = np.bincount(texts, minlength=len(lengths))[texts] == 1
    return Fitted(
        ids,
        mask,
        new_lengths.astype(np.int32),
        _num_labels(mask, new_ends - new_lengths, new_ends).astype(np.int32),
        texts,
        alone & (new_lengths < lengths[texts]),
        problems,
    )


def _num_labels(
    mask: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Count the labels of each run of tokens, its first token's not: nothing predicts it."""
    before: NDArray[np.int64] = np.concatenate(([0], np.cumsum(mask, dtype=np.int64)))
    counts: NDArray[np.int64] = before[ends] - before[np.minimum(starts + 1, ends)]
    return counts


def _bounds(
    mask: NDArray[np.uint8], limit: int, too_long: TooLong, splits: bool
) -> list[tuple[int, int]]:
    """Return what is kept of one text. Raises RowProblem if nothing is."""
    length = len(mask)
    if not mask[1:].any():
        message = "no trainable token: nothing in this row is learned"
        raise RowProblem("no trainable token", message)
    if too_long == "skip":
        raise RowProblem(TOO_LONG_SKIPPED, f"{length} tokens, max_length {limit}")
    if splits and limit >= 2:
        return piece_bounds(length, limit)
    if not mask[1:limit].any():
        prompt = int(np.argmax(mask))
        message = (
            f"everything truncated away: {prompt} tokens of prompt, max_length {limit}; "
            "raise data.max_length or shorten the prompt"
        )
        raise RowProblem("everything truncated away", message)
    return [(0, limit)]


def piece_bounds(length: int, limit: int) -> list[tuple[int, int]]:
    """Cut `length` tokens into consecutive pieces of at most `limit`.

    A last piece of one token would have nothing to predict, so it takes one from its neighbour.
    """
    cuts = [*range(0, length, limit), length]
    if limit > 2 and cuts[-1] - cuts[-2] == 1:
        cuts[-2] -= 1
    return list(pairwise(cuts))


def digests_of(
    ids: NDArray[np.int32], mask: NDArray[np.uint8], lengths: NDArray[np.int32]
) -> NDArray[np.uint64]:
    """Hash the ids and the mask of every example. Shapes: ids (U,), lengths (E,) -> (E,)."""
    all_ids, all_masks = ids.tobytes(), mask.tobytes()
    digests = [
        hashlib.blake2b(all_ids[4 * a : 4 * b] + all_masks[a:b], digest_size=8).digest()
        for a, b in pairwise([0, *np.cumsum(lengths).tolist()])
    ]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)
