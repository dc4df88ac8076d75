"""A comparison as a table for a person."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

from launcher.compare import Comparison

_ABSENT = "-"


def to_text(comparison: Comparison) -> str:
    """Draw results, then the settings that differ."""
    parts = [_table("", comparison.runs, comparison.results)]
    if comparison.settings:
        parts.append(_table("settings that differ", comparison.runs, comparison.settings))
    elif len(comparison.runs) > 1:
        parts.append("no setting differs")
    return "\n\n".join(parts)


def _table(heading: str, runs: tuple[str, ...], rows: Mapping[str, tuple[Any, ...]]) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(heading, no_wrap=True)
    for run in runs:
        table.add_column(run, overflow="fold")
    for name, values in rows.items():
        # Not markup: a value may hold square brackets.
        table.add_row(name, *(_cell(value) for value in values))
    width = max(shutil.get_terminal_size((120, 24)).columns, 80)
    console = Console(width=width, color_system=None, markup=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _cell(value: Any) -> str:
    if value is None:
        return _ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
