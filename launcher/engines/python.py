"""One process, no launcher between: a CPU, or a single GPU. PURE."""

from __future__ import annotations

from launcher.engines.launch import TRAINER, EngineCommand, Launch


def python_command(launch: Launch) -> EngineCommand:
    """Return the trainer's own command."""
    return EngineCommand(argv=[launch.python, "-m", TRAINER, *launch.trainer_arguments])
