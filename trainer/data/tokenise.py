"""From texts to token ids and loss masks.

Shapes: N texts, T tokens of all of them together.
"""

from __future__ import annotations

from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from trainer.data.chat import Span
from trainer.data.words import make_cut

Tokens = tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.int64]]
"""Ids (T,), mask (T,), tokens of each text (N,)."""

_NUM_CHECKED = 4  # texts of every chunk that are tokenised both ways
_MOST_NEW = 0.5  # share of a chunk's characters in new words from which cutting does not pay
_MOST_KEPT = 5_000_000  # characters of kept words: about 20 MB
_OVERHEAD = 50  # that a word takes beside its characters
_JOINED = 100  # words that are tokenised together


class _Located(NamedTuple):
    """Tokens and their characters, counted as if all texts lay end to end with one between two."""

    ids: NDArray[np.int32]  # (T,)
    starts: NDArray[np.int64]  # (T,)
    ends: NDArray[np.int64]  # (T,)
    lengths: NDArray[np.int64]  # (N,)


class _Kept(dict[str, bytes]):
    """The tokens of words: id, characters to the next token's start, characters of its own."""

    def __init__(self) -> None:
        self.missed: set[str] = set()
        self.size = 0

    def __missing__(self, word: str) -> bytes:
        self.missed.add(word)
        return b""


class Tokeniser:
    """Tokenises and masks texts; every word once, where the tokenizer permits."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._cut = make_cut(tokenizer)
        self._kept = _Kept()

    def __call__(self, texts: list[str], spans: list[list[Span]]) -> Tokens:
        """Encode texts and mark the tokens whose characters overlap a labelled span."""
        located = self._by_word(texts) or self._whole(texts)
        return located.ids, label_mask(located, texts, spans), located.lengths

    def _by_word(self, texts: list[str]) -> _Located | None:
        """Look all words up; None when that is not possible here or does not pay."""
        if self._cut is None or not texts:
            return None
        words = list(chain.from_iterable(map(self._cut, texts)))
        num_chars = np.array([len(text) for text in texts], np.int64)
        if self._kept.size > _MOST_KEPT:
            self._kept = _Kept()
        packed = b"".join(map(self._kept.__getitem__, words))
        if new := self._kept.missed:
            self._kept.missed = set()
            if sum(map(len, new)) > _MOST_NEW * num_chars.sum() or not self._keep(new):
                return None
            packed = b"".join(map(self._kept.__getitem__, words))
        ids, steps, widths = np.frombuffer(packed, np.int32).reshape(-1, 3).T
        ends = np.cumsum(steps, dtype=np.int64)
        starts = ends - steps
        lengths = np.diff(np.searchsorted(starts, np.cumsum(num_chars)), prepend=0)
        starts += np.repeat(np.arange(len(texts)), lengths)
        located = _Located(np.ascontiguousarray(ids), starts, starts + widths, lengths)
        if self._is_own(located, texts):
            return located
        self._cut = None
        return None

    def _keep(self, new: set[str]) -> bool:
        """Keep the tokens of new words; False when the tokenizer passes over some of them."""
        # The tokenizer cuts at the spaces between these: together they take half the time.
        joinable = [word for word in new if word[0] == " " and not word[-1].isspace()]
        alone = list(new.difference(joinable))
        texts = alone + [
            "".join(joinable[i : i + _JOINED]) for i in range(0, len(joinable), _JOINED)
        ]
        words = alone + joinable
        tokens = self._whole(texts)
        starts = tokens.starts - np.repeat(np.arange(len(texts)), tokens.lengths)
        sizes = np.array([len(word) for word in words], np.int64)
        ends = np.cumsum(sizes)
        first = np.searchsorted(starts, ends - sizes)
        if first[-1] == len(starts) or not np.array_equal(starts[first], ends - sizes):
            return False
        steps = np.diff(starts, append=ends[-1])
        table = np.stack((tokens.ids, steps, tokens.ends - tokens.starts), axis=1)
        packed, bounds = table.astype(np.int32).tobytes(), 12 * np.append(first, len(starts))
        for word, (start, end) in zip(words, pairwise(bounds.tolist()), strict=True):
            self._kept[word] = packed[start:end]
        self._kept.size += int(ends[-1]) + _OVERHEAD * len(words)
        return True

    def _is_own(self, located: _Located, texts: list[str]) -> bool:
        """Compare the first texts with what the tokenizer itself makes of them."""
        own = self._whole(texts[:_NUM_CHECKED])
        num_tokens = len(own.ids)
        return (
            np.array_equal(located.lengths[: len(own.lengths)], own.lengths)
            and np.array_equal(located.ids[:num_tokens], own.ids)
            and np.array_equal(located.starts[:num_tokens], own.starts)
            and np.array_equal(located.ends[:num_tokens], own.ends)
        )

    def _whole(self, texts: list[str]) -> _Located:
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return _located(encodings, texts)


def _located(encodings: list[Encoding], texts: list[str]) -> _Located:
    lengths = np.array([len(encoding.ids) for encoding in encodings], np.int64)
    num_tokens = int(lengths.sum())
    ids = chain.from_iterable(encoding.ids for encoding in encodings)
    offsets = chain.from_iterable(chain.from_iterable(e.offsets for e in encodings))
    chars = np.fromiter(offsets, np.int64, 2 * num_tokens).reshape(-1, 2)
    chars += np.repeat(_bases(texts), lengths)[:, None]
    return _Located(np.fromiter(ids, np.int32, num_tokens), chars[:, 0], chars[:, 1], lengths)


def _bases(texts: list[str]) -> NDArray[np.int64]:
    """Return where every text starts. Shapes: (N,)."""
    sizes = np.array([len(text) + 1 for text in texts], np.int64)
    return np.cumsum(sizes) - sizes


def label_mask(located: _Located, texts: list[str], spans: list[list[Span]]) -> NDArray[np.uint8]:
    """Mark the tokens whose characters overlap a labelled span. Shapes: returns (T,)."""
    flat = [
        (base + start, base + end)
        for base, row in zip(_bases(texts).tolist(), spans, strict=True)
        for start, end in row
    ]
    if not flat:
        return np.zeros(len(located.ids), np.uint8)
    starts, ends = np.array(flat, np.int64).T
    # A token without characters of its own (a split-off word boundary) stands for the next one.
    last = np.maximum(located.ends, located.starts + 1)
    span = np.searchsorted(ends, located.starts, side="right")
    inside = span < len(ends)
    inside[inside] = starts[span[inside]] < last[inside]
    return inside.astype(np.uint8)
