"""The run directory as the launcher finds it and leaves it: begun anew, or gone on with."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from launcher.attempt import Attempt
from launcher.plan_request import Past
from launcher.run_plan import RunPlan
from trainer.attempt import LIFELINE_SECONDS
from trainer.checkpoints.contract import read_global_batch_size
from trainer.errors import ConfigError, EnvironmentProblem
from trainer.run_directory import RunDirectory, write_json
from trainer.status import write_preparing

WAIT_SECONDS = LIFELINE_SECONDS + 5.0
"""For the ranks of an attempt whose launcher was killed: they save and end by themselves."""
_POLL_SECONDS = 0.2


def resume_choice(given: str) -> str:
    """Return `auto`, `never`, or the absolute path of what to go on from.

    Raises: ConfigError when there is no such folder.
    """
    if given in ("auto", "never"):
        return given
    path = Path(given).expanduser().absolute()
    if not path.is_dir():
        raise ConfigError(
            f"--resume {given}: no such folder",
            rule="it is auto, never, a checkpoint folder or a run directory",
            fix="name an existing one, or leave --resume out to go on where output_dir stands",
        )
    return str(path)


def enter(run: RunDirectory, resume: str, *, is_waiting: bool) -> None:
    """Return when a run may begin or go on here; one whose launcher has died is left to end first.

    Raises: ConfigError when it may not.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    is_told = False
    while is_waiting and resume != "never" and time.monotonic() < deadline:
        process = run.process_at_work()
        if process is None:
            break
        if not is_told:
            is_told = True
            who = "rank 0" if run.read_status().get("state") == "running" else "the launcher"
            what = f"waiting for {who} (pid {process.pid}) of the last attempt to end"
            click.echo(what, err=True)
        time.sleep(_POLL_SECONDS)
    run.refuse(resume, marker=run.resolved_config)


def goes_on(run: RunDirectory, resume: str) -> bool:
    """Whether a run is here that is not to be begun anew."""
    return resume != "never" and run.resolved_config.exists()


def read_past(run: RunDirectory, resume: str) -> Past:
    """Read what the run that goes on has fixed and shown."""
    if resume == "never":
        return Past()
    source, runs = run.path, [run.path]
    if resume != "auto":
        source = Path(resume)
        runs += [source, source.parent.parent]  # a checkpoint is RUN/checkpoints/step-N
    saves = [seconds for path in runs if (seconds := _save_seconds(RunDirectory(path))) is not None]
    return Past(read_global_batch_size(source), max(saves, default=None))


def _save_seconds(run: RunDirectory) -> float | None:
    saved = _read_object(run.last_save).get("seconds")
    return float(saved) if isinstance(saved, (int, float)) else None


def is_complete(run: RunDirectory, resolved: str) -> bool:
    """Whether just this run, its config resolved as `resolved`, has been completed here."""
    has_completed = run.read_status().get("state") == "completed"
    return has_completed and _read_object(run.resolved_config) == json.loads(resolved)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@dataclass(frozen=True)
class CreatedRun:
    """What this process put on disk, so that it can take back exactly that."""

    directory: RunDirectory
    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    """Folders that did not exist before, innermost first."""

    @classmethod
    def create(cls, path: Path, given: Path, resolved: str, *, resume: str) -> CreatedRun:
        """Create the directory, with a byte copy of the given config and the resolved one.

        Raises: ConfigError when it holds a run, or another launcher is quicker; EnvironmentProblem
        when it cannot be written.
        """
        run = RunDirectory(path)
        is_replaced = resume == "never" and run.resolved_config.exists()
        run.refuse(resume, marker=run.resolved_config)
        copy = path / given_name(given)
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        created = cls(run, (run.resolved_config, copy, run.status), tuple(missing))
        with _explained(path):
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError:
                created.give_back()
                raise
            if is_replaced:  # nothing had been trained
                run.resolved_config.unlink(missing_ok=True)
            try:
                # First and exclusively: of launchers that start together, one gets the directory.
                file = run.resolved_config.open("x", encoding="utf-8")
            except FileExistsError:
                raise run.in_progress("another launcher has just begun") from None
            try:
                with file:
                    file.write(resolved)
                write_preparing(run)
                copy.write_bytes(given.read_bytes())
            except OSError:
                created.give_back()
                raise
        return created

    def give_back(self) -> None:
        """Remove what was created here; anything another process left stays, and its folder."""
        with contextlib.suppress(OSError):
            for file in reversed(self.files):
                file.unlink(missing_ok=True)
            for folder in self.folders:
                folder.rmdir()


def given_name(given: Path) -> str:
    """Return the name of the copy of a given config. PURE."""
    return f"given_config{given.suffix}"  # not config.json: that name marks a folder as a model


def create_attempt(run: RunDirectory, given: Path, resolved: str, plan: RunPlan) -> Attempt:
    """Begin an attempt that goes on with a run; all its files are its own.

    Whether it may go on is the trainer's to find out, so nothing of the run is replaced here.
    Raises: ConfigError, EnvironmentProblem.
    """
    run.refuse("auto", marker=run.resolved_config)
    attempt = Attempt.create(run.path)
    with _explained(run.path):
        (attempt.folder / given_name(given)).write_bytes(given.read_bytes())
        (attempt.folder / run.resolved_config.name).write_text(resolved, encoding="utf-8")
    write_plan(attempt.folder / run.plan.name, plan)
    return attempt


def write_plan(path: Path, plan: RunPlan) -> None:
    """Write plan.json.

    Raises: EnvironmentProblem.
    """
    with _explained(path.parent):
        write_json(path, plan.model_dump(mode="json"))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(
            f"output_dir {path} cannot be written: {error.strerror}",
            rule="the run directory needs a writable place with free space",
            fix="choose another output_dir, or free this one",
        ) from None
