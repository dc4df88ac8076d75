"""What can be wrong with a row, and the ledger that counts it: nothing is dropped silently."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import DataError

MAX_LISTED = 1000  # rows listed one by one in data_report.json; all of them are counted
MAX_SHOWN = 20  # rows shown in an error message
TOO_LONG_SKIPPED = "longer than max_length"  # the user's choice (too_long: skip), not a bad row


class RowProblem(Exception):
    """One row cannot become an example.

    `reason` is a short category that rows are counted by, `message` says what is wrong here and
    the rule, `field` is the place inside the row ("messages[2].content").
    """

    def __init__(self, reason: str, message: str, field: str = "") -> None:
        # All three go to Exception so that the problem survives pickling between processes.
        super().__init__(reason, message, field)
        self.reason, self.message, self.field = reason, message, field

    def at(self, where: str) -> str:
        """Render as one line: `file:line: field: what is wrong`."""
        place = f"{where}: {self.field}" if self.field else where
        return f"{place}: {self.message}"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as read: its columns, or the problem that kept it from being read."""

    where: str
    value: dict[str, Any]
    problem: RowProblem | None = None
    raw: str | None = None
    num_bytes: int = 0
    """Source bytes this row stands for (progress only)."""


@dataclass
class BadRows:
    """Counts, lists and keeps the rows that were left out."""

    kept_in: Path
    num_rows: int = 0
    by_reason: Counter[str] = field(default_factory=Counter)
    by_source: Counter[int] = field(default_factory=Counter)
    listed: list[dict[str, Any]] = field(default_factory=list)
    _shown: list[str] = field(default_factory=list)

    @property
    def num_bad(self) -> int:
        """Rows left out because they are wrong, not because they were asked to be skipped."""
        return self.num_rows - self.by_reason[TOO_LONG_SKIPPED]

    def add(self, source: int, row: RawRow, problem: RowProblem) -> None:
        """Count one row and append it, as it was read, to the file of skipped rows."""
        self.num_rows += 1
        self.by_reason[problem.reason] += 1
        self.by_source[source] += 1
        if problem.reason != TOO_LONG_SKIPPED and len(self._shown) < MAX_SHOWN:
            self._shown.append(problem.at(row.where))
        entry = {
            "where": row.where,
            "field": problem.field,
            "reason": problem.reason,
            "message": problem.message,
        }
        if len(self.listed) < MAX_LISTED:
            self.listed.append({**entry, "source": source})
        kept = row.value if row.raw is None else row.raw
        with self.kept_in.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps({**entry, "row": kept}, ensure_ascii=False, default=str) + "\n")

    def to_error(self, num_seen: int) -> DataError:
        """One error for all bad rows: the first ones in full, the rest as a number."""
        lines = [f"  {line}" for line in self._shown]
        more = self.num_bad - len(self._shown)
        if more > 0:
            lines.append(f"  ... and {more} more")
        counts = ", ".join(
            f"{count} x {reason}"
            for reason, count in self.by_reason.most_common()
            if reason != TOO_LONG_SKIPPED
        )
        noun = "row" if self.num_bad == 1 else "rows"
        return DataError(
            f"{self.num_bad} bad {noun} of {num_seen} ({counts})\n" + "\n".join(lines),
            rule="every row must become an example with at least one token to learn",
            fix="correct the rows, or set data.on_bad_row: skip to train without them "
            "(they are counted and listed in data_report.json)",
        )

    def to_report(self) -> dict[str, Any]:
        """Counts by reason and the first rows, for data_report.json."""
        return {
            "rows": self.num_rows,
            "by_reason": dict(self.by_reason.most_common()),
            "listed": self.listed,
            "listed_are": "all" if len(self.listed) == self.num_rows else f"first {MAX_LISTED}",
        }
