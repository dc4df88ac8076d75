"""One run from its config: directory, preparation, training."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from launcher.engines.python import RunCommands, make_commands
from launcher.run_directory import CreatedRun
from launcher.supervise import supervise
from trainer.config import Config, to_json
from trainer.config_paths import with_absolute_paths
from trainer.run_directory import RunDirectory


def show_run(config: Config) -> str:
    """Return the commands a run would start, as lines for a shell."""
    directory = RunDirectory(Path(config.output_dir))
    directory.refuse_run(directory.resolved_config)
    return "\n".join(shlex.join(command) for command in _commands(config))


def start_run(config: Config, given: Path) -> int:
    """Create the run directory, prepare the data, train; return the exit code.

    When preparing fails the directory holds no run yet, and is given back.
    """
    commands = _commands(config)
    created = CreatedRun.create(
        Path(config.output_dir), given, to_json(with_absolute_paths(config))
    )
    is_prepared = False
    try:
        code = supervise(commands.prepare)
        is_prepared = code == 0
    finally:
        if not is_prepared:
            created.give_back()
    return supervise(commands.train) if is_prepared else code


def _commands(config: Config) -> RunCommands:
    return make_commands(sys.executable, RunDirectory(Path(config.output_dir)).resolved_config)
