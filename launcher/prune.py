"""Removing a run's needless checkpoints by hand, by the rules training itself follows."""

from __future__ import annotations

import socket
from pathlib import Path

import click

from launcher.checkpoints_table import nothing_in
from trainer.checkpoints.commit import Pruned, clear_leftovers, prune
from trainer.checkpoints.folder import list_checkpoints
from trainer.checkpoints.manifest import newest_valid
from trainer.checkpoints.state import read_state
from trainer.config import CheckpointConfig, load_config
from trainer.errors import EnvironmentProblem
from trainer.run_directory import RunDirectory


def prune_run(path: Path) -> Pruned:
    """Remove leftovers, then all but the last `checkpoint.keep_last`, the best, the newest valid.

    Raises: ConfigError when there is no checkpoint, or the run is in progress on this machine;
    EnvironmentProblem when none is valid, or something cannot be removed.
    """
    run = RunDirectory(path)
    may_be_written_to = _may_be_in_progress_elsewhere(run)
    keep_last = _keep_last(run)
    if may_be_written_to:
        notes = ["leftovers stay: the run may be in progress on another machine"]
    else:
        notes = clear_leftovers(run.checkpoints)
    if not list_checkpoints(run.checkpoints):
        raise nothing_in(path)
    newest = newest_valid(run.checkpoints).found
    if newest is None:
        raise EnvironmentProblem(
            f"{path}: no valid checkpoint, so none was removed",
            rule="the newest valid checkpoint is kept, and the others only go when there is one",
            fix="see what is wrong with each: rankzero checkpoints --verify",
        )
    best_step = read_state(newest.path).best_step
    keep = () if best_step is None else (best_step,)
    pruned = prune(run.checkpoints, keep_last=keep_last, keep=keep, newest=newest)
    for note in notes:
        click.echo(note, err=True)
    if pruned.problems:
        raise EnvironmentProblem(
            f"{path}: not everything could be removed: {'; '.join(pruned.problems)}",
            rule="removing a checkpoint renames and deletes folders",
            fix="let this user write to them, or remove them as their owner",
        )
    return pruned


def _keep_last(run: RunDirectory) -> int:
    if not run.resolved_config.exists():
        return CheckpointConfig().keep_last
    return load_config(run.resolved_config).checkpoint.keep_last


def _may_be_in_progress_elsewhere(run: RunDirectory) -> bool:
    """Raises: ConfigError when the run is in progress here."""
    process = run.process_at_work()
    if process is not None:
        raise run.in_progress(f"process {process.pid}")
    status = run.read_status()
    is_at_work = status.get("state") in ("preparing", "running")
    return is_at_work and status.get("host") != socket.gethostname()
