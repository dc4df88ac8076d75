"""Filling a cache entry: stream the rows through the encoder, then split, count and report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.config import Config
from trainer.data.chat import learn_template
from trainer.data.encode import Chunk, Encoder, EncoderSettings
from trainer.data.layouts import LaidOutFile
from trainer.data.order import example_keys
from trainer.data.parallel import encode_all
from trainer.data.problems import BadRows
from trainer.data.readers import read_chunks
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
    largest_token_id: int = 0


def build_entry(
    config: Config,
    files: list[LaidOutFile],
    facts: TokenizerFacts,
    folder: Path,
    on_progress: OnProgress,
) -> None:
    """Write rows.arrow, the split indices and report.json. Raises DataError for bad rows."""
    encoder, notes = make_encoder(config, files, facts)
    bad = BadRows(folder / "skipped_rows.jsonl")
    tally = _encode_rows(config, files, encoder, folder, bad=bad, on_progress=on_progress)
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
    rows_of_source = dict(tally.num_rows_of_source)
    summary = Summary(tally.num_rows, rows_of_source, bad, notes, encoder.tokenizer)
    report = make_report(config, files, table, indices, summary)
    report["largest_token_id"] = tally.largest_token_id
    (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def make_encoder(
    config: Config, files: list[LaidOutFile], facts: TokenizerFacts
) -> tuple[Encoder, list[str]]:
    """Settle how rows are encoded, and what there is to say about it."""
    data, notes = config.data, []
    encoder = Encoder(
        EncoderSettings(
            facts.backend,
            None,
            facts.eos_token,
            data.max_length,
            data.too_long,
            data.train_on,
            data.order,
        )
    )
    if any(file.layout.shape in CHAT_SHAPES for file in files):
        template, origin = chosen_template(config, facts)
        chat = learn_template(template, facts.special_tokens, facts.eos_token, encoder.tokenizer)
        encoder.settings = replace(encoder.settings, chat=chat)
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
    return encoder, notes


def _encode_rows(
    config: Config,
    files: list[LaidOutFile],
    encoder: Encoder,
    folder: Path,
    *,
    bad: BadRows,
    on_progress: OnProgress,
) -> _Tally:
    tally = _Tally()
    with RowWriter(folder / "rows.arrow") as writer:
        for chunk, encoded in encode_all(make_chunks(files), encoder, config.data.workers):
            for row, problem in encoded.problems:
                bad.add(chunk.source_index, row, problem)
            keys = example_keys(config.data.order, encoded, tally.num_rows)
            writer.write(encoded, chunk.source_index, tally.num_rows, keys)
            tally.num_rows += encoded.num_rows
            tally.num_rows_of_source[chunk.source_index] += encoded.num_rows
            tally.num_examples += len(encoded.lengths)
            largest = int(encoded.ids.max(initial=0))
            tally.largest_token_id = max(tally.largest_token_id, largest)
            on_progress(encoded.num_rows, encoded.num_bytes)
    return tally


def make_chunks(files: list[LaidOutFile]) -> Iterator[Chunk]:
    """Read all files in chunks."""
    for laid_out in files:
        file = laid_out.file
        for rows in read_chunks(file):
            yield Chunk(laid_out.layout, file.source_index, rows, file.role == "train")


def split_indices(config: Config, table: RowTable) -> dict[SplitName, NDArray[np.int64]]:
    """Decide every split's examples. Shapes: each (N,), positions in rows.arrow."""
    data, sources = config.data, all_sources(config.data)
    codes = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    role_of_source = np.array([codes[role] for role, _ in sources], np.int8)
    assigned = role_of_source[table.sources]
    from_train = np.flatnonzero(assigned == TRAIN)
    # Pieces of one long row stay together, so that no split sees a part of another one's row.
    is_first = np.diff(table.rows[from_train], prepend=-1) != 0
    first, row_of = np.flatnonzero(is_first), np.cumsum(is_first) - 1
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
