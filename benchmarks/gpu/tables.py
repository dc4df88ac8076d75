"""Numbers as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any


def speeds(result: Mapping[str, Any]) -> list[float]:
    """Tokens per second of each measured step."""
    pairs = zip(result["tokens"], result["seconds"], strict=True)
    return [tokens / seconds for tokens, seconds in pairs]


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Write the median and the range."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Write a table; a short row is filled up with empty cells."""
    lines = [heads, ["---"] * len(heads)]
    lines += [[*row, *[""] * (len(heads) - len(row))] for row in rows]
    return [f"| {' | '.join(map(str, cells))} |" for cells in lines]
