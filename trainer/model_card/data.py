"""The data of a card: what data_report.json says, by file name, without a row of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.sources import ROLES


@dataclass(frozen=True)
class Data:
    """Tables of a card about the data."""

    fingerprint: str
    splits: tuple[tuple[str, ...], ...]
    """Name, rows, examples, tokens, tokens that are learned, examples cut to the length."""
    sources: tuple[tuple[str, ...], ...]
    """Name, what it was named for, rows read, rows left out, weight."""
    left_out: tuple[tuple[str, str], ...]
    """Reason, rows."""
    warnings: tuple[str, ...]
    hub_ids: tuple[str, ...]
    """Sources that are datasets on the Hub."""


def read_data(report: dict[str, Any], settings: dict[str, Any]) -> Data | None:
    """Read a data report; None without one. Pure.

    settings: `data` of resolved.json, where a local path is absolute and a Hub id is not.
    """
    if not report:
        return None
    paths = [str(source["path"]) for role in ROLES for source in settings.get(role) or ()]
    hub_ids = {path for path in paths if not Path(path).is_absolute()}
    return Data(
        fingerprint=report["fingerprint"],
        splits=tuple(
            (
                name,
                *(f"{split[key]:,}" for key in ("rows", "examples", "tokens", "label_tokens")),
                f"{split.get('truncated', 0):,}",
            )
            for name, split in report["splits"].items()
            if split["examples"]
        ),
        sources=tuple(
            (
                source["path"] if source["path"] in hub_ids else Path(source["path"]).name,
                source["named_for"],
                f"{source['rows_read']:,}",
                f"{source['rows_skipped']:,}",
                f"{source['weight']:g}",
            )
            for source in report["sources"]
        ),
        left_out=tuple(
            (reason, f"{count:,}")
            for reason, count in sorted(report["skipped"]["by_reason"].items())
        ),
        warnings=tuple(report["warnings"]),
        hub_ids=tuple(sorted(hub_ids)),
    )
