"""One process, no launcher between: a CPU, or a single GPU. PURE."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class RunCommands(NamedTuple):
    """Command lines of a run, in the order they run."""

    prepare: list[str]
    train: list[str]


def make_commands(python: str, resolved: Path) -> RunCommands:
    """Return the commands for a resolved config."""
    return RunCommands(
        prepare=[python, "-m", "trainer.prepare", "--config", str(resolved)],
        train=[python, "-m", "trainer", "--config", str(resolved)],
    )
