"""An order function, as a user would write one."""

from __future__ import annotations

from typing import Any


def words(row: dict[str, Any]) -> int:
    """Count the words of a row."""
    return len(row["text"].split())
