"""Where a run goes on: which checkpoint, and whether it belongs to this run. Torch-free."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoints.commit import begin, commit, discard, explaining_writes
from trainer.checkpoints.contract import check_contract, read_contract
from trainer.checkpoints.folder import Checkpoint, checkpoint_name, list_checkpoints
from trainer.checkpoints.manifest import FILE_NAME as MANIFEST
from trainer.checkpoints.manifest import Search, find_problem, newest_valid
from trainer.checkpoints.state import RunState, read_state
from trainer.errors import ConfigError, EnvironmentProblem
from trainer.run_directory import RunDirectory

AUTO, NEVER = "auto", "never"
_BEST = "BestModelCallback"
# What tells the lines of one step in metrics.jsonl apart.
_KINDS = ("loss", "eval_loss", "eval_quality", "eval_safety_compliance_rate")


@dataclass(frozen=True)
class Start:
    """Where training begins, and what to tell about it. Without a checkpoint: at the beginning."""

    checkpoint: Path | None = None
    state: RunState | None = None
    notes: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        return 0 if self.state is None else self.state.step

    def measured(self, lines: Iterable[dict[str, Any]]) -> Iterator[bool]:
        """Tell of each line of samples, checks and advice whether it is from before this start.

        Of the last step that is the first line: the end of a run measures its best weights again.
        PURE.
        """
        seen: set[str | None] = set()
        is_pending = self.state is not None and self.state.evaluation_pending
        for line in lines:
            step, name = line.get("step", 0), line.get("name")
            if self.state is None or step != self.step:
                yield step < self.step
                continue
            yield name not in seen and not is_pending
            seen.add(name)

    def logged(self, lines: Iterable[dict[str, Any]]) -> Iterator[bool]:
        """Tell of each line of metrics.jsonl whether it is from before this start. PURE.

        Of the last step that is the first line of each kind: the results at the end of a run are
        measured again.
        """
        seen: set[str] = set()
        for line in lines:
            step = line.get("step", 0)
            kind = next((name for name in _KINDS if name in line), None)
            if self.state is None or step != self.step:
                yield step < self.step
                continue
            is_repeated = kind != "loss" and self.state.evaluation_pending
            yield kind is not None and kind not in seen and not is_repeated
            seen.add(kind or "")


def find_start(
    resume: str, run: RunDirectory, contract: Mapping[str, Any], *, allow_changes: bool
) -> Start:
    """Choose the checkpoint to go on from: `auto` (this run's newest valid), `never`, or a path.

    Raises: ConfigError when it belongs to another run; EnvironmentProblem when it is damaged.
    """
    if resume == NEVER:
        return Start()
    folder, notes = _newest(run.checkpoints) if resume == AUTO else _named(Path(resume))
    if resume != AUTO and newest_valid(run.checkpoints).found is not None:
        # An earlier start with the same --resume has gone on from there: so does this one.
        _refuse_older(Path(resume), run)
        folder, notes = _newest(run.checkpoints)
        notes.append(f"{run.path} has checkpoints of its own; --resume {resume} was for its start")
    begun = read_contract(folder if folder is not None else run.path)
    if begun is not None:
        notes += check_contract(
            begun,
            contract,
            folder or run.path,
            allow_changes=allow_changes,
            is_trained=folder is not None or run.metrics.exists(),
        )
    if folder is None:
        _refuse_results(run)
        return Start(notes=tuple(notes))
    state, best_notes = _with_usable_best(read_state(folder), folder)
    notes += best_notes
    saved_by = f"saved by {state.world_size} x {state.engine}, {state.precision}"
    notes.append(f"going on from {folder} (step {state.step}, epoch {state.epoch:.2f}, {saved_by})")
    return Start(folder, state, tuple(notes))


def check_named(resume: str) -> None:
    """Look whether a checkpoint may be where `--resume PATH` points; find_start verifies it.

    Raises: ConfigError.
    """
    if resume not in (AUTO, NEVER):
        path = Path(resume).expanduser().resolve()
        if not (path / MANIFEST).is_file() and not list_checkpoints(RunDirectory(path).checkpoints):
            raise _no_checkpoint(path)


def bring_in(start: Start, run: RunDirectory) -> Start:
    """Copy a start that lies in another run, and its best checkpoint, into this one.

    Ranks: rank 0 only.
    """
    if start.checkpoint is None or start.state is None:
        return start
    source = start.checkpoint.parent
    if source.resolve() == run.checkpoints.resolve():
        return start
    best = start.state.best_step or start.step
    wanted = {best: source / checkpoint_name(best), start.step: start.checkpoint}
    for step, folder in wanted.items():
        temporary = begin(run.checkpoints, step)
        try:
            with explaining_writes(run.checkpoints):
                shutil.copytree(folder, temporary, dirs_exist_ok=True)
            commit(temporary, run.checkpoints, step)
        except BaseException:
            discard(temporary)
            raise
    return dataclasses.replace(start, checkpoint=run.checkpoints / checkpoint_name(start.step))


def _with_usable_best(state: RunState, checkpoint: Path) -> tuple[RunState, list[str]]:
    """Forget a best checkpoint that cannot be gone back to; the next evaluation finds another."""
    if state.best_step is None or state.best_step == state.step:
        return state, []
    best = checkpoint.with_name(checkpoint_name(state.best_step))
    problem = find_problem(best) if best.exists() else "it is gone"
    if problem is None:
        return state, []
    callbacks = {name: kept for name, kept in state.callbacks.items() if name != _BEST}
    note = f"{best.name}, the best so far, is not usable: {problem}; the best is sought anew"
    return dataclasses.replace(state, best_step=None, callbacks=callbacks), [note]


def _newest(checkpoints: Path) -> tuple[Path | None, list[str]]:
    search = newest_valid(checkpoints)
    if search.found is None:
        if search.skipped:
            raise _all_damaged(checkpoints, search)
        return None, []
    return search.found.path, _skipped(search)


def _named(path: Path) -> tuple[Path | None, list[str]]:
    """Find the checkpoint a user named: itself, or the newest valid one of a run."""
    path = path.expanduser().resolve()
    checkpoints = RunDirectory(path).checkpoints
    if checkpoints.is_dir():
        folder, notes = _newest(checkpoints)
        if folder is not None:
            return folder, notes
    if not (path / MANIFEST).is_file():
        raise _no_checkpoint(path)
    problem = find_problem(path)
    if problem is not None:
        raise EnvironmentProblem(
            f"--resume {path}: {problem}",
            rule="a checkpoint is used only when every file is as it was written",
            fix="name another one; `rankzero checkpoints RUN --verify` checks them all",
        )
    return path, []


def _no_checkpoint(path: Path) -> ConfigError:
    return ConfigError(
        f"--resume {path}: there is no checkpoint",
        rule="a run directory with checkpoints/, or one checkpoints/step-N of it",
        fix="check the path; `rankzero checkpoints RUN` lists what a run has",
    )


def _refuse_results(run: RunDirectory) -> None:
    """Refuse to begin anew over results: somebody removed the checkpoints, not the run.

    Raises: ConfigError.
    """
    results = (run.adapter, run.model, run.best_model, run.summary)
    found = next((path for path in results if path.exists()), None)
    if found is not None:
        raise ConfigError(
            f"{run.path} holds {found.name} and no checkpoint to go on from",
            rule="a run goes on from a checkpoint, and its results are never overwritten",
            fix="choose another output_dir, or bring checkpoints/ back",
        )


def _refuse_older(path: Path, run: RunDirectory) -> None:
    """Refuse to go on from the middle of a run: the next `auto` would take what was left behind.

    Raises: ConfigError.
    """
    path = path.expanduser().resolve()
    newest = newest_valid(run.checkpoints).found
    is_own = path.parent == run.checkpoints.resolve()
    if newest is not None and is_own and newest.path.name != path.name:
        raise ConfigError(
            f"--resume {path}: this run has gone on to {newest.path.name}",
            rule="a run goes on from its newest valid checkpoint, and nothing later is overwritten",
            fix=f"choose another output_dir to branch off, or remove what follows {path.name}",
        )


def _skipped(search: Search) -> list[str]:
    return [_skip_line(checkpoint, reason) for checkpoint, reason in search.skipped]


def _skip_line(checkpoint: Checkpoint, reason: str) -> str:
    return f"skipped {checkpoint.path.name}: {reason}"


def _all_damaged(checkpoints: Path, search: Search) -> EnvironmentProblem:
    lines = "\n".join(f"  {line}" for line in _skipped(search))
    return EnvironmentProblem(
        f"none of the {len(search.skipped)} checkpoints in {checkpoints} is valid:\n{lines}",
        rule="a run goes on from a checkpoint whose every file is as it was written",
        fix="bring the files back, or choose another output_dir to begin anew",
    )
