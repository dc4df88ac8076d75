"""The checkpoints of a run as they lie on disk, for a person or as JSON. Reads no weights."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from trainer.checkpoints.folder import (
    Checkpoint,
    checkpoint_name,
    list_checkpoints,
    list_paths,
    read_latest,
)
from trainer.checkpoints.manifest import find_problem
from trainer.checkpoints.state import RunState, read_state
from trainer.errors import ConfigError, EnvironmentProblem
from trainer.run_directory import RunDirectory

_ABSENT = "-"


@dataclass(frozen=True)
class Row:
    """One checkpoint."""

    checkpoint: Checkpoint
    size_bytes: int
    verdict: Literal["valid", "not verified", "broken"]
    problem: str | None
    state: RunState | None
    """None when state.json cannot be read."""
    marks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        told = ("epoch", "tokens", "saved", "kind", "engine", "world_size")
        return {
            "step": self.checkpoint.step,
            "path": str(self.checkpoint.path),
            "size_bytes": self.size_bytes,
            "verdict": self.verdict,
            "problem": self.problem,
            "marks": self.marks,
            **{name: getattr(self.state, name) if self.state else None for name in told},
        }

    def to_cells(self) -> tuple[str, ...]:
        """Return what stands in the table."""
        epoch = saved = writer = _ABSENT
        if self.state is not None:
            writer, ranks = self.state.engine, self.state.world_size
            if ranks > 1:
                writer += f", {ranks} ranks"
            writer += ", sharded" if self.state.kind == "sharded" else ""
            epoch, saved = f"{self.state.epoch:.2f}", _to_time(self.state.saved)
        size = f"{self.size_bytes / 2**20:,.1f} MiB"
        marks, found = ", ".join(self.marks), self.problem or self.verdict
        return (str(self.checkpoint.step), epoch, size, saved, writer, marks, found)


@dataclass(frozen=True)
class CheckpointsTable:
    """A run's checkpoints, newest first."""

    run: Path
    rows: tuple[Row, ...]
    is_verified: bool

    @property
    def resume_step(self) -> int | None:
        """Where a resume would go on; None when that is nowhere, or nothing was verified."""
        return next((row.checkpoint.step for row in self.rows if row.verdict == "valid"), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "run": str(self.run),
            "checkpoints": [row.to_json() for row in self.rows],
            "resume_step": self.resume_step,
        }

    def to_text(self) -> str:
        """Draw the table."""
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for heading in ("step", "epoch", "size", "saved", "by", "marks", "state"):
            right = heading in ("step", "epoch", "size")
            table.add_column(
                heading, justify="right" if right else "left", no_wrap=heading != "state"
            )
        for row in self.rows:
            table.add_row(*row.to_cells())
        # Without a terminal rich assumes 80 columns and would break lines that nobody must read.
        width = max(shutil.get_terminal_size((160, 24)).columns, 80)
        console = Console(width=width, color_system=None, markup=False)
        with console.capture() as captured:
            console.print(table)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def refuse_broken(self) -> None:
        """Raises: EnvironmentProblem when a verified checkpoint is not valid."""
        broken = [row for row in self.rows if row.verdict == "broken"]
        if not self.is_verified or not broken:
            return
        names = ", ".join(row.checkpoint.path.name for row in broken)
        step = self.resume_step
        if step is None:
            then, fix = "none is left to go on from", "copy one back from a backup, or start anew"
        else:
            then = f"the run would go on from {checkpoint_name(step)}"
            fix = "leave them: a resume passes over them; --prune removes those that are damaged"
        raise EnvironmentProblem(
            f"{self.run}: {len(broken)} of {len(self.rows)} checkpoints cannot be used "
            f"({names}); {then}",
            rule="every file has the size and the SHA-256 that the manifest says",
            fix=fix,
        )


def read_table(run: Path, *, is_verified: bool) -> CheckpointsTable:
    """Look at every checkpoint of a run: at its sizes, or at all that is in its files.

    Raises: ConfigError when there is none; EnvironmentProblem.
    """
    folder = RunDirectory(run).checkpoints
    listed = list_checkpoints(folder)
    if not listed:
        raise nothing_in(run)
    states = {checkpoint.step: _state_of(checkpoint) for checkpoint in listed}
    newest = next((state for state in states.values() if state is not None), None)
    latest, best_step = read_latest(folder), newest.best_step if newest is not None else None
    rows = []
    for checkpoint in listed:
        problem = find_problem(checkpoint.path, hashed=is_verified)
        marks = {
            "latest": checkpoint.path.name == latest,
            "best": checkpoint.step == best_step,
        }
        row = Row(
            checkpoint=checkpoint,
            size_bytes=_size_bytes(checkpoint.path),
            verdict="broken" if problem else "valid" if is_verified else "not verified",
            problem=problem,
            state=states[checkpoint.step],
            marks=tuple(mark for mark, is_true in marks.items() if is_true),
        )
        if checkpoint.path.exists():  # else a run in progress has removed it meanwhile
            rows.append(row)
    return CheckpointsTable(run, tuple(rows), is_verified)


def nothing_in(run: Path) -> ConfigError:
    """Make the error of a folder that is no run, or a run without a checkpoint."""
    if not list_paths(run):
        what = "this folder is empty" if run.is_dir() else "no such folder"
        return ConfigError(
            f"{run}: {what}",
            rule="checkpoints are kept in the run directory",
            fix="name the output_dir of a run",
        )
    return ConfigError(
        f"{run}: no checkpoint",
        rule=f"a run keeps them in {RunDirectory(run).checkpoints.name}/{checkpoint_name(100)} ...",
        fix="name the output_dir of a run, or wait until it has saved once "
        "(checkpoint.every_steps)",
    )


def _state_of(checkpoint: Checkpoint) -> RunState | None:
    with contextlib.suppress(EnvironmentProblem, TypeError, ValueError, OverflowError):
        state = read_state(checkpoint.path)
        # What is not verified may be JSON and nonsense.
        _to_time(state.saved)
        float(state.epoch)
        return state
    return None


def _to_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def _size_bytes(checkpoint: Path) -> int:
    total = 0
    for path in checkpoint.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
