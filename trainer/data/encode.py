"""From rows to token ids and loss masks, one chunk at a time; runs in any process.

Shapes: E examples of a chunk, T tokens of all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trainer.data.chat import ChatTemplate, Span
from trainer.data.examples import TooLong, digests_of, fit
from trainer.data.lines import Lines
from trainer.data.order import row_key
from trainer.data.problems import RawRow, RowProblem
from trainer.data.rows import CHAT_SHAPES, Chat, Layout, Plain, to_example
from trainer.data.tokenise import Tokeniser, Tokens


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one file, as rows or as lines that are yet to be read."""

    layout: Layout
    source_index: int
    rows: list[RawRow] | Lines
    is_train: bool = False
    """Training rows get the key they are ordered by."""


@dataclass(frozen=True)
class EncodedChunk:
    """Examples made of a chunk, back to back, and the rows that made none."""

    ids: NDArray[np.int32]  # (T,)
    mask: NDArray[np.uint8]  # (T,)
    lengths: NDArray[np.int32]  # (E,)
    num_labels: NDArray[np.int32]  # (E,) after the shift: mask[1:].sum()
    digests: NDArray[np.uint64]  # (E,) of ids and mask
    rows: NDArray[np.int32]  # (E,) position of the example's row in the chunk
    row_keys: NDArray[np.float64]  # (E,) what the row is ordered by, NaN where that is not its own
    truncated: NDArray[np.bool_]  # (E,)
    problems: list[tuple[RawRow, RowProblem]]  # in the order of the rows
    num_rows: int
    num_bytes: int  # of the source (progress only)


@dataclass(frozen=True)
class EncoderSettings:
    """What an encoder is made from, in any process."""

    backend: str
    chat: ChatTemplate | None
    eos_token: str | None
    max_length: int
    too_long: TooLong
    train_on: Literal["assistant", "all"]
    order: str = "shuffle"


@dataclass
class _Rendered:
    """The rows of a chunk that could be rendered, and those that could not."""

    texts: list[str]
    spans: list[list[Span]]
    positions: list[int]
    keys: list[float]
    problems: list[tuple[int, RawRow, RowProblem]]


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
        self._tokenise = Tokeniser(self.tokenizer)
        self._key_of = row_key(settings.order)

    def _special_ids(self) -> tuple[list[int], list[int]]:
        """Return the ids the tokenizer itself puts before and after plain text."""
        encoding = self.tokenizer.encode("a")
        plain = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        first, last = (plain[0], plain[-1]) if plain else (0, -1)
        return encoding.ids[:first], encoding.ids[last + 1 :]

    def encode(self, chunk: Chunk) -> EncodedChunk:
        """Make examples of a chunk's rows, in their order."""
        rows = chunk.rows if isinstance(chunk.rows, list) else list(chunk.rows.read())
        rendered = self._render_all(rows, chunk)
        tokens = self._tokenise(rendered.texts, rendered.spans)
        if chunk.layout.shape not in CHAT_SHAPES and (self.before or self.after):
            tokens = self._with_special(tokens)
        splits = self.settings.too_long == "split" and chunk.layout.shape == "text"
        fitted = fit(tokens, self.settings.max_length, self.settings.too_long, splits=splits)
        positions = np.array(rendered.positions, np.int32)
        problems = rendered.problems + [
            (int(positions[text]), rows[positions[text]], problem)
            for text, problem in fitted.problems
        ]
        return EncodedChunk(
            fitted.ids,
            fitted.mask,
            fitted.lengths,
            fitted.num_labels,
            digests_of(fitted.ids, fitted.mask, fitted.lengths),
            positions[fitted.texts],
            np.array(rendered.keys, np.float64)[fitted.texts],
            fitted.truncated,
            [(row, problem) for _, row, problem in sorted(problems, key=lambda entry: entry[0])],
            len(rows),
            sum(row.num_bytes for row in rows),
        )

    def _render_all(self, rows: Iterable[RawRow], chunk: Chunk) -> _Rendered:
        rendered = _Rendered([], [], [], [], [])
        key_of = self._key_of if chunk.is_train else None
        for position, row in enumerate(rows):
            try:
                if row.problem is not None:
                    raise row.problem
                key = math.nan if key_of is None else key_of(row.value)
                text, labelled = self._render(row, chunk.layout)
            except RowProblem as problem:
                rendered.problems.append((position, row, problem))
                continue
            rendered.positions.append(position)
            rendered.keys.append(key)
            rendered.texts.append(text)
            rendered.spans.append(labelled)
        return rendered

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

    def _with_special(self, tokens: Tokens) -> Tokens:
        """Add what the tokenizer puts around plain text: before is given, after is learned."""
        ids, mask, lengths = tokens
        num_before, num_after = len(self.before), len(self.after)
        ends = np.cumsum(lengths)
        # text by text: its start, its end; np.insert keeps this order where an end is a start too
        edges = np.stack((ends - lengths, ends), axis=1).ravel()
        where = np.repeat(edges, np.tile([num_before, num_after], len(lengths)))
        new = np.tile(np.array([*self.before, *self.after], np.int32), len(lengths))
        learned = np.tile(
            np.repeat(np.array([0, 1], np.uint8), [num_before, num_after]), len(lengths)
        )
        longer = lengths + num_before + num_after
        return np.insert(ids, where, new), np.insert(mask, where, learned), longer
