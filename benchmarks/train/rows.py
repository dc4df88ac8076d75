"""Prepared rows on their way from the product to its peers: ids and labels, in one file.

Shapes: N rows, S tokens of all rows together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOT_LABELLED = -100
Example = dict[str, list[int]]


def save_examples(path: Path, examples: list[Example]) -> None:
    """Write ids (S,), labels (S,) and lengths (N,)."""
    np.savez(
        path,
        ids=np.concatenate([example["input_ids"] for example in examples]),
        labels=np.concatenate([example["labels"] for example in examples]),
        lengths=np.array([len(example["input_ids"]) for example in examples]),
    )


def load_examples(path: Path) -> list[Example]:
    """Read what `save_examples` wrote."""
    with np.load(path) as stored:
        bounds = np.cumsum(stored["lengths"])[:-1]
        columns = (np.split(stored[name], bounds) for name in ("ids", "labels"))
        pairs = zip(*columns, strict=True)
        return [{"input_ids": a.tolist(), "labels": b.tolist()} for a, b in pairs]


def to_example(ids: NDArray[np.int32], mask: NDArray[np.bool_]) -> Example:
    """Label what the mask says; never the first token, which nothing precedes."""
    labels = np.where(mask, ids, NOT_LABELLED)
    labels[0] = NOT_LABELLED
    return {"input_ids": ids.tolist(), "labels": labels.tolist()}


def count_tokens(examples: Any) -> int:
    return sum(len(example["input_ids"]) for example in examples)


def count_labels(examples: Any) -> int:
    return sum(label != NOT_LABELLED for example in examples for label in example["labels"])
