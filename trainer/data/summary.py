"""What data_report.json says about prepared data: counts, lengths, duplicates, a preview."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trainer.config import Config
from trainer.data.layouts import LaidOutFile
from trainer.data.problems import BadRows
from trainer.data.sources import all_sources
from trainer.data.store import RowTable, SplitName

_PREVIEW_CHARS = 4000


@dataclass(frozen=True)
class Summary:
    """What was counted while rows streamed by."""

    num_rows: int
    num_rows_of_source: dict[int, int]
    bad: BadRows
    notes: list[str]
    tokenizer: Tokenizer


def make_report(
    config: Config,
    files: list[LaidOutFile],
    table: RowTable,
    indices: dict[SplitName, NDArray[np.int64]],
    summary: Summary,
) -> dict[str, Any]:
    """Collect the report; the caller adds where the data lies."""
    sources = all_sources(config.data)
    splits = {}
    for name, index in indices.items():
        of_sources = {}
        for number, (_, source) in enumerate(sources):
            members = index[table.sources[index] == number]
            if len(members):
                # Two sources may share a path (with other weights or prefixes).
                label = source.path if source.path not in of_sources else f"{source.path} #{number}"
                of_sources[label] = describe(table, members)
        splits[name] = {**describe(table, index), "sources": of_sources}
    duplicates = count_duplicates(table, indices)
    return {
        "rows_read": summary.num_rows,
        "splits": splits,
        "sources": [
            {
                "path": source.path,
                "named_for": role,
                "rows_read": summary.num_rows_of_source.get(number, 0),
                "rows_skipped": summary.bad.by_source[number],
                "weight": source.weight,
                "files": [
                    {"path": laid_out.file.path, "shape": laid_out.layout.shape}
                    for laid_out in files
                    if laid_out.file.source_index == number
                ],
            }
            for number, (role, source) in enumerate(sources)
        ],
        "skipped": summary.bad.to_report(),
        "duplicates": duplicates,
        "warnings": _warnings(duplicates),
        "notes": summary.notes,
        "preview": preview(table, int(indices["train"][0]), summary.tokenizer),
    }


def describe(table: RowTable, index: NDArray[np.int64]) -> dict[str, Any]:
    """Count one set of examples. Units: lengths are tokens per example."""
    if not len(index):
        return {"rows": 0, "examples": 0, "tokens": 0, "label_tokens": 0}
    lengths, rows = table.lengths[index], table.rows[index]
    unique_positions = _distinct(index)
    num_rows_once = len(_distinct(rows))
    repeats = len(index) - len(unique_positions)
    low, mid, high = np.percentile(lengths, [0, 50, 95])
    return {
        # As seen in one epoch: a source of weight 2 counts twice.
        "rows": len(index) - _extra_pieces(table, index),
        "distinct_rows": num_rows_once,
        "examples": len(index),
        "tokens": int(lengths.sum(dtype=np.int64)),
        "label_tokens": int(table.num_labels[index].sum(dtype=np.int64)),
        "length": {
            "min": int(low),
            "mean": round(float(lengths.mean()), 1),
            "p50": float(mid),
            "p95": float(high),
            "max": int(lengths.max()),
        },
        "truncated": int(table.truncated[unique_positions].sum()),
        "extra_pieces_of_split_rows": len(unique_positions) - num_rows_once,
        "repeated_by_weight": repeats,
    }


def _distinct(ascending: NDArray[np.int64]) -> NDArray[np.int64]:
    """Leave out what repeats the number before it. Takes less memory than to sort once more."""
    is_first = np.ones(len(ascending), np.bool_)
    is_first[1:] = ascending[1:] != ascending[:-1]
    return ascending[is_first]


def _extra_pieces(table: RowTable, index: NDArray[np.int64]) -> int:
    """Count examples that continue the row before them."""
    continues = np.zeros(len(table), np.bool_)
    continues[1:] = table.rows[1:] == table.rows[:-1]
    return int(continues[index].sum())


def count_duplicates(
    table: RowTable, indices: dict[SplitName, NDArray[np.int64]]
) -> dict[str, int]:
    """Count equal examples (same ids, same mask) inside train, and shared with the other splits."""
    train = table.digests[_distinct(indices["train"])]
    distinct = np.unique(train)
    counts = {"inside_train": len(train) - len(distinct)}
    for name in ("validation", "test"):
        shared = np.isin(table.digests[indices[name]], distinct)
        counts[f"{name}_also_in_train"] = int(shared.sum())
    return counts


def _warnings(duplicates: dict[str, int]) -> list[str]:
    warnings = []
    if duplicates["inside_train"]:
        warnings.append(
            f"{duplicates['inside_train']} training examples repeat an earlier one exactly"
        )
    for name in ("validation", "test"):
        if shared := duplicates[f"{name}_also_in_train"]:
            warnings.append(
                f"{shared} {name} examples are also in the training split: "
                f"the {name} loss will look better than it is"
            )
    return warnings


def preview(table: RowTable, position: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Show one example as text, and the parts of it that are learned."""
    ids, mask = table.row(position)
    learned = np.flatnonzero(mask)
    runs = np.split(learned, np.flatnonzero(np.diff(learned) > 1) + 1)
    return {
        "text": tokenizer.decode(ids.tolist(), skip_special_tokens=False)[:_PREVIEW_CHARS],
        "learned": [
            tokenizer.decode(ids[run].tolist(), skip_special_tokens=False)[:_PREVIEW_CHARS]
            for run in runs
        ],
        "tokens": len(ids),
        "label_tokens": int(mask[1:].sum()),
    }
