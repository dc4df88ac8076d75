"""One process, no launcher between: a CPU, or a single GPU. PURE."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from launcher.engines.launch import TRAINER, EngineCommand, Launch


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


def python_command(launch: Launch) -> EngineCommand:
    """Return the trainer's own command."""
    return EngineCommand(argv=[launch.python, "-m", TRAINER, *launch.trainer_arguments])
