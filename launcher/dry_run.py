"""`rankzero train --dry-run`: the commands of a run, to paste into a shell."""

from __future__ import annotations

from pathlib import Path

from launcher.engines import EngineCommand, EngineName, shell_line
from launcher.planning import PlannedRun
from launcher.start import (
    Start,
    engine_command,
    prepare_command,
    write_files,
    write_resolved_config,
)
from trainer.errors import ConfigError, EnvironmentProblem

DRY_RUN_FOLDER = "dry-run"
_ENGINES: tuple[EngineName, ...] = ("python", "torchrun", "accelerate", "deepspeed")


def show_run(planned: PlannedRun, start: Start) -> str:
    """Write what a run's commands name into RUN/dry-run, and return the commands for a shell.

    Every engine that can carry out this plan is shown, the chosen one first.
    """
    folder = Path(planned.config.output_dir).absolute() / DRY_RUN_FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(
            f"output_dir {folder.parent} cannot be written: {error.strerror}",
            rule="a dry run leaves the files its commands name in RUN/dry-run",
            fix="choose another output_dir",
        ) from None
    resolved = write_resolved_config(planned, folder)
    lines = ["# first: prepare the data", shell_line(EngineCommand(prepare_command(resolved)))]
    chosen = planned.plan.engine
    for engine in (chosen, *(name for name in _ENGINES if name != chosen)):
        try:
            command = engine_command(engine, planned, start, resolved=resolved, folder=folder)
        except ConfigError as error:
            lines.append(f"# {engine}: not possible here ({error.what})")
            continue
        write_files(command)
        lines += [f"# {engine}: {'chosen' if engine == chosen else 'or'}", shell_line(command)]
    return "\n".join(lines)
