"""Filling a cache entry: stream the rows through the encoder, then split, count and report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.config import Config
from trainer.data.chat import learn_template
from trainer.data.encode import Chunk, Encoder, EncoderSettings
from trainer.data.layouts import LaidOutFile
from trainer.data.order import RowKey, example_keys, row_key
from trainer.data.parallel import ROWS_PER_CHUNK, encode_all
from trainer.data.problems import BadRows, RawRow, RowProblem
from trainer.data.rows import CHAT_SHAPES
from trainer.data.sources import all_sources
from trainer.data.split import TEST, TRAIN, VALIDATION, split_rows, weighted_indices
from trainer.data.store import RowTable, RowWriter, SplitName, write_index
from trainer.data.summary import Summary, make_report
from trainer.data.tokenizer import TokenizerFacts, chosen_template
from trainer.errors import DataError

OnProgress = Callable[[int, int], None]
"""Called with the rows and the source bytes that were just read."""


@dataclass
class _Tally:
    """What is counted while rows stream by."""

    num_rows: int = 0
    num_rows_of_source: Counter[int] = field(default_factory=Counter)
    num_examples: int = 0


def build_entry(
    config: Config,
    files: list[LaidOutFile],
    facts: TokenizerFacts,
    folder: Path,
    on_progress: OnProgress,
) -> None:
    """Write rows.arrow, the split indices and report.json. Raises DataError for bad rows."""
    settings, notes = make_settings(config, files, facts)
    bad = BadRows(folder / "skipped_rows.jsonl")
    tally = _encode_rows(config, files, settings, folder, bad=bad, on_progress=on_progress)
    if bad.num_bad and config.data.on_bad_row == "error":
        raise bad.to_error(tally.num_rows)
    if bad.num_bad and tally.num_examples == 0:
        raise bad.to_error(tally.num_rows)
    if tally.num_examples == 0:
        raise DataError(
            f"all {tally.num_rows} rows are longer than data.max_length ({config.data.max_length})",
            fix="raise data.max_length, or set data.too_long: truncate",
        )
    table = RowTable(folder / "rows.arrow")
    indices = split_indices(config, table)
    for name, index in indices.items():
        write_index(folder, name, index)
    summary = Summary(
        tally.num_rows, dict(tally.num_rows_of_source), bad, notes, Encoder(settings).tokenizer
    )
    report = make_report(config, files, table, indices, summary)
    report["largest_token_id"] = table.largest_token_id()
    (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def make_settings(
    config: Config, files: list[LaidOutFile], facts: TokenizerFacts
) -> tuple[EncoderSettings, list[str]]:
    """Settle how rows are encoded, and what there is to say about it."""
    data, notes, chat = config.data, [], None
    if any(file.layout.shape in CHAT_SHAPES for file in files):
        template, origin = chosen_template(config, facts)
        tokenizer = Encoder(
            EncoderSettings(facts.backend, None, None, 1, "truncate", "all")
        ).tokenizer
        chat = learn_template(template, facts.special_tokens, facts.eos_token, tokenizer)
        notes.append(f"chat template: {origin}")
        if chat.folds_system:
            notes.append(
                "the chat template has no system turn: system text goes into the first user turn"
            )
        if chat.final_marker:
            notes.append(f"an assistant turn ends with {chat.final_marker!r}, which is learned")
        elif chat.appended_eos:
            notes.append(
                f"the chat template writes no end of turn: {chat.appended_eos!r} is appended to "
                "the last one, and learned"
            )
    if facts.eos_token is None:
        notes.append("the tokenizer has no end-of-text token: the model cannot learn to stop")
    settings = EncoderSettings(
        facts.backend, chat, facts.eos_token, data.max_length, data.too_long, data.train_on
    )
    return settings, notes


def _encode_rows(
    config: Config,
    files: list[LaidOutFile],
    settings: EncoderSettings,
    folder: Path,
    *,
    bad: BadRows,
    on_progress: OnProgress,
) -> _Tally:
    key_of = row_key(config.data.order)
    tally = _Tally()
    with RowWriter(folder / "rows.arrow") as writer:
        for chunk, encoded in encode_all(make_chunks(files, key_of), settings, config.data.workers):
            for position, problem in encoded.problems:
                bad.add(chunk.source_index, chunk.rows[position], problem)
            row_keys = [row.order_key for row in chunk.rows]
            keys = example_keys(config.data.order, encoded, tally.num_rows, row_keys)
            writer.write(encoded, chunk.source_index, tally.num_rows, keys)
            tally.num_rows += len(chunk.rows)
            tally.num_rows_of_source[chunk.source_index] += len(chunk.rows)
            tally.num_examples += len(encoded.lengths)
            on_progress(len(chunk.rows), sum(row.num_bytes for row in chunk.rows))
    return tally


def make_chunks(files: list[LaidOutFile], key_of: RowKey | None = None) -> Iterator[Chunk]:
    """Read all files in chunks of rows; training rows get the key they are ordered by."""
    for laid_out in files:
        rows, file = laid_out.rows(), laid_out.file
        while chunk := list(islice(rows, ROWS_PER_CHUNK)):
            if key_of is not None and file.role == "train":
                chunk = [_with_key(row, key_of) for row in chunk]
            yield Chunk(laid_out.layout, file.source_index, chunk)


def _with_key(row: RawRow, key_of: RowKey) -> RawRow:
    if row.problem is not None:
        return row
    try:
        return replace(row, order_key=key_of(row.value))
    except RowProblem as problem:
        return replace(row, problem=problem)


def split_indices(config: Config, table: RowTable) -> dict[SplitName, NDArray[np.int64]]:
    """Decide every split's examples. Shapes: each (N,), positions in rows.arrow."""
    data, sources = config.data, all_sources(config.data)
    codes = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    role_of_source = np.array([codes[role] for role, _ in sources], np.int8)
    assigned = role_of_source[table.sources]
    from_train = np.flatnonzero(assigned == TRAIN)
    # Pieces of one long row stay together, so that no split sees a part of another one's row.
    _, first, row_of = np.unique(table.rows[from_train], return_index=True, return_inverse=True)
    validation = 0 if data.validation else data.validation_size
    test = 0 if data.test else data.test_size
    rows = split_rows(table.sources[from_train][first], validation, test, config.seed)
    assigned[from_train] = rows[row_of]
    indices: dict[SplitName, NDArray[np.int64]] = {
        "validation": np.flatnonzero(assigned == VALIDATION),
        "test": np.flatnonzero(assigned == TEST),
    }
    train = np.flatnonzero(assigned == TRAIN)
    weights = [source.weight for source in data.train]
    train = train[weighted_indices(table.sources[train], weights, config.seed)]
    if not len(train):
        raise DataError(
            "no training example is left",
            rule="the training sources give at least one example",
            fix="raise the weight of a source, or make the other splits smaller",
        )
    return {"train": train, **indices}
