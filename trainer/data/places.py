"""Where examples came from, in words a person can follow to their files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.config_data import DataConfig
from trainer.data.sources import all_sources
from trainer.data.store import PreparedSplit

_MOST = 8


def name_rows(split: PreparedSplit, examples: Sequence[int], data: DataConfig) -> str:
    """Name the rows of some examples: row numbers count from 1 within their source."""
    positions = split.positions[list(examples)]
    table, sources = split.data.table, all_sources(data)
    names = []
    for source in np.unique(table.sources[positions]).tolist():
        first = split.data.first_rows[source]
        rows = np.unique(table.rows[positions[table.sources[positions] == source]] - first + 1)
        listed = ", ".join(map(str, rows[:_MOST].tolist()))
        more = f" and {len(rows) - _MOST} more" if len(rows) > _MOST else ""
        names.append(f"{listed}{more} of {sources[source][1].path}")
    return "; ".join(names)
