"""From rows to token ids and loss masks, one chunk at a time; runs in any process.

Shapes: E examples of a chunk, T tokens of all of them together.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from trainer.data.chat import ChatTemplate, Span
from trainer.data.problems import TOO_LONG_SKIPPED, RawRow, RowProblem
from trainer.data.rows import Chat, Layout, Plain, to_example


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one file."""

    layout: Layout
    source_index: int
    rows: list[RawRow]


@dataclass(frozen=True)
class EncodedChunk:
    """Examples made of a chunk, back to back, and the rows that made none."""

    ids: NDArray[np.int32]  # (T,)
    mask: NDArray[np.uint8]  # (T,)
    lengths: NDArray[np.int32]  # (E,)
    num_labels: NDArray[np.int32]  # (E,) after the shift: mask[1:].sum()
    digests: NDArray[np.uint64]  # (E,) of ids and mask
    rows: NDArray[np.int32]  # (E,) position of the example's row in the chunk
    truncated: NDArray[np.bool_]  # (E,)
    problems: list[tuple[int, RowProblem]]  # (position in the chunk, what is wrong)


@dataclass(frozen=True)
class EncoderSettings:
    """What an encoder is made from, in any process."""

    backend: str
    chat: ChatTemplate | None
    eos_token: str | None
    max_length: int
    too_long: Literal["truncate", "split", "skip"]
    train_on: Literal["assistant", "all"]


class Encoder:
    """Validates, renders, tokenises and masks rows."""

    def __init__(self, settings: EncoderSettings) -> None:
        self.settings = settings
        self.tokenizer = Tokenizer.from_str(settings.backend)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.before, self.after = self._special_ids()
        # Only special tokens and offset trimming live in the post-processor. The former are added
        # here where they belong; the latter would take a leading space away from its token.
        self.tokenizer.post_processor = None
        eos = settings.eos_token
        ends_itself = bool(eos) and self.tokenizer.token_to_id(eos or "") in self.after
        self.eos = "" if ends_itself else (eos or "")

    def _special_ids(self) -> tuple[list[int], list[int]]:
        """Return the ids the tokenizer itself puts before and after plain text."""
        encoding = self.tokenizer.encode("a")
        plain = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        first, last = (plain[0], plain[-1]) if plain else (0, -1)
        return encoding.ids[:first], encoding.ids[last + 1 :]

    def encode(self, chunk: Chunk) -> EncodedChunk:
        """Make examples of a chunk's rows, in their order."""
        positions: list[int] = []
        texts: list[str] = []
        spans: list[list[Span]] = []
        problems: list[tuple[int, RowProblem]] = []
        for position, row in enumerate(chunk.rows):
            try:
                if row.problem is not None:
                    raise row.problem
                text, labelled = self._render(row, chunk.layout)
            except RowProblem as problem:
                problems.append((position, problem))
                continue
            positions.append(position)
            texts.append(text)
            spans.append(labelled)
        is_chat = chunk.layout.shape in ("instruction", "messages")
        examples = _Examples([], [], [], [])
        splits = self.settings.too_long == "split" and chunk.layout.shape == "text"
        for position, ids, mask in zip(
            positions, *self._tokenise(texts, spans, is_chat), strict=True
        ):
            try:
                pieces = self._fit(ids, mask, splits)
            except RowProblem as problem:
                problems.append((position, problem))
                continue
            truncated = len(pieces) == 1 and len(pieces[0][0]) < len(ids)
            for piece in pieces:
                examples.add(position, *piece, truncated)
        return examples.to_chunk(sorted(problems, key=lambda entry: entry[0]))

    def _render(self, row: RawRow, layout: Layout) -> tuple[str, list[Span]]:
        learns_all = self.settings.train_on == "all"
        example = to_example(row.value, layout, needs_assistant=not learns_all)
        if isinstance(example, Plain):
            text = example.text + self.eos
            return text, [(0 if learns_all else example.label_start, len(text))]
        return self._render_chat(example, learns_all)

    def _render_chat(self, example: Chat, learns_all: bool) -> tuple[str, list[Span]]:
        chat = self.settings.chat
        assert chat is not None  # learnt whenever a layout is chat-shaped
        if learns_all and not chat.appended_eos:
            text = chat.render(chat.fold(example.messages))
            return text, [(0, len(text))]
        text, labelled = chat.render_labelled(example.messages)
        return text, [(0, len(text))] if learns_all else labelled

    def _tokenise(
        self, texts: list[str], spans: list[list[Span]], is_chat: bool
    ) -> tuple[list[NDArray[np.int32]], list[NDArray[np.uint8]]]:
        """Encode all texts in one call and mask them."""
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        ids = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        flat = label_mask(encodings, texts, spans)
        masks = np.split(flat, np.cumsum([len(row) for row in ids])[:-1]) if ids else []
        if is_chat or not (self.before or self.after):
            return ids, masks
        before, after = np.array(self.before, np.int32), np.array(self.after, np.int32)
        ids = [np.concatenate((before, row, after)) for row in ids]
        # What the tokenizer puts before is given, what it puts after (an end token) is learned.
        given, learned = np.zeros(len(before), np.uint8), np.ones(len(after), np.uint8)
        return ids, [np.concatenate((given, row, learned)) for row in masks]

    def _fit(
        self, ids: NDArray[np.int32], mask: NDArray[np.uint8], splits: bool
    ) -> list[tuple[NDArray[np.int32], NDArray[np.uint8]]]:
        """Bring one example to at most `max_length` tokens. Raises RowProblem if none is left."""
        limit, length = self.settings.max_length, len(ids)
        if not mask[1:].any():
            message = "no trainable token: nothing in this row is learned"
            raise RowProblem("no trainable token", message)
        if length <= limit:
            return [(ids, mask)]
        if self.settings.too_long == "skip":
            raise RowProblem(TOO_LONG_SKIPPED, f"{length} tokens, max_length {limit}")
        if not splits or limit < 2:
            if not mask[1:limit].any():
                prompt = int(np.argmax(mask))
                message = (
                    f"everything truncated away: {prompt} tokens of prompt, max_length {limit}; "
                    "raise data.max_length or shorten the prompt"
                )
                raise RowProblem("everything truncated away", message)
            return [(ids[:limit], mask[:limit])]
        return [(ids[a:b], mask[a:b]) for a, b in piece_bounds(length, limit)]


def piece_bounds(length: int, limit: int) -> list[tuple[int, int]]:
    """Cut `length` tokens into consecutive pieces of at most `limit`.

    A last piece of one token would have nothing to predict, so it takes one from its neighbour.
    """
    cuts = [*range(0, length, limit), length]
    if limit > 2 and cuts[-1] - cuts[-2] == 1:
        cuts[-2] -= 1
    return list(pairwise(cuts))


def label_mask(
    encodings: list[Encoding], texts: list[str], spans: list[list[Span]]
) -> NDArray[np.uint8]:
    """Mark the tokens whose characters overlap a labelled span. Shapes: returns (T,).

    All texts are laid end to end on one axis, so that one binary search serves the whole chunk.
    """
    counts = np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)
    bases = np.concatenate(([0], np.cumsum([len(text) + 1 for text in texts])))[:-1]
    offsets = chain.from_iterable(chain.from_iterable(e.offsets for e in encodings))
    token = np.fromiter(offsets, np.int64, 2 * int(counts.sum())).reshape(-1, 2)
    token += np.repeat(bases.astype(np.int64), counts)[:, None]
    starts = np.array(
        [b + s[0] for b, row in zip(bases, spans, strict=True) for s in row], np.int64
    )
    ends = np.array([b + s[1] for b, row in zip(bases, spans, strict=True) for s in row], np.int64)
    if not len(ends):
        return np.zeros(len(token), np.uint8)
    # A token without characters of its own (a split-off word boundary) stands for the next one.
    last = np.maximum(token[:, 1], token[:, 0] + 1)
    span = np.searchsorted(ends, token[:, 0], side="right")
    inside = span < len(ends)
    inside[inside] = starts[span[inside]] < last[inside]
    return inside.astype(np.uint8)


@dataclass
class _Examples:
    ids: list[NDArray[np.int32]]
    masks: list[NDArray[np.uint8]]
    rows: list[int]
    truncated: list[bool]

    def add(
        self, row: int, ids: NDArray[np.int32], mask: NDArray[np.uint8], truncated: bool
    ) -> None:
        self.ids.append(ids)
        self.masks.append(mask)
        self.rows.append(row)
        self.truncated.append(truncated)

    def to_chunk(self, problems: list[tuple[int, RowProblem]]) -> EncodedChunk:
        digests = [
            int.from_bytes(
                hashlib.blake2b(a.tobytes() + b.tobytes(), digest_size=8).digest(), "big"
            )
            for a, b in zip(self.ids, self.masks, strict=True)
        ]
        return EncodedChunk(
            ids=np.concatenate([*self.ids, np.empty(0, np.int32)]),
            mask=np.concatenate([*self.masks, np.empty(0, np.uint8)]),
            lengths=np.array([len(ids) for ids in self.ids], np.int32),
            num_labels=np.array([mask[1:].sum() for mask in self.masks], np.int32),
            digests=np.array(digests, np.uint64),
            rows=np.array(self.rows, np.int32),
            truncated=np.array(self.truncated, np.bool_),
            problems=problems,
        )
