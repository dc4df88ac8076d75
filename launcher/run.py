"""One run from its plan: directory, preparation, and the engine that carries it out."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from launcher.attempt import Attempt
from launcher.hardware import detect
from launcher.nodes import meet_other_nodes
from launcher.nvme import nvme_folder
from launcher.planning import PlannedRun
from launcher.run_directory import CreatedRun, create_attempt, goes_on, is_complete, write_plan
from launcher.start import (
    Start,
    engine_command,
    prepare_command,
    resolved_config,
    write_files,
    write_resolved_config,
)
from launcher.supervise import supervise
from trainer.errors import ConfigError, EnvironmentProblem
from trainer.run_check import check_run
from trainer.run_directory import RunDirectory


def start_run(planned: PlannedRun, given: Path, start: Start) -> int:
    """Prepare the data and train, in a new run directory or going on in one; return the exit code.

    A run that is complete already, and the same, is left as it is.
    Raises: RankZeroError, with the exit code of the rank that caused it.
    """
    run = RunDirectory(Path(planned.config.output_dir).absolute())
    if start.resume == "auto" and is_complete(run, resolved_config(planned)):
        click.echo(f"{run.path} is complete: nothing to do", err=True)
        click.echo(f"its result: {run.adapter if run.adapter.exists() else run.model}", err=True)
        return 0
    _check_this_machine(planned)
    if start.node_rank == 0:
        check_run(planned.config, start.resume)
    with nvme_folder(planned) as located:
        # Before anything is written: an engine that cannot start this plan says so now.
        engine_command(planned.plan.engine, located, start, resolved=run.path, folder=run.path)
        if start.node_rank:
            return _join_run(located, start, run)
        if goes_on(run, start.resume):
            return _go_on(located, given, start, run)
        return _begin(located, given, start, run)


def _begin(planned: PlannedRun, given: Path, start: Start, run: RunDirectory) -> int:
    """Train in a new run directory, which is given back when preparing fails: it holds no run."""
    created = CreatedRun.create(run.path, given, resolved_config(planned), resume=start.resume)
    is_prepared = False
    try:
        code = supervise(prepare_command(run.resolved_config))
        is_prepared = code == 0
    finally:
        if not is_prepared:
            created.give_back()
    if not is_prepared:
        return code
    write_plan(run.plan, planned.plan)
    return _train(planned, start, run.resolved_config, Attempt.create(run.path))


def _go_on(planned: PlannedRun, given: Path, start: Start, run: RunDirectory) -> int:
    """Train in a directory that holds a run; its plan.json is replaced unless it is refused."""
    attempt = create_attempt(run, given, resolved_config(planned), planned.plan)
    resolved = attempt.folder / run.resolved_config.name
    code = supervise(prepare_command(resolved))
    if code:
        return code
    is_accepted = True
    try:
        return _train(planned, start, resolved, attempt)
    except ConfigError:  # not this run: what is here stays as it was
        is_accepted = False
        raise
    finally:
        if is_accepted:
            with contextlib.suppress(EnvironmentProblem):  # the attempt's own end is to be told
                write_plan(run.plan, planned.plan)


def _join_run(planned: PlannedRun, start: Start, run: RunDirectory) -> int:
    """Train on another node than the first, whose run directory may be on another disk."""
    attempt = Attempt.create(run.path, node_rank=start.node_rank)
    resolved = write_resolved_config(planned, attempt.folder)
    code = supervise(prepare_command(resolved))
    return code or _train(planned, start, resolved, attempt)


def _train(planned: PlannedRun, start: Start, resolved: Path, attempt: Attempt) -> int:
    if planned.plan.nodes > 1:
        start = meet_other_nodes(planned, start, attempt)
    if start.node_rank:
        log = attempt.log(start.node_rank * planned.plan.processes_per_node)
        click.echo(f"node 0 shows the progress; the log of this node: {log}", err=True)
    else:  # some seconds pass before it can say anything itself
        click.echo("starting the trainer", err=True)
    engine, folder = planned.plan.engine, attempt.folder
    command = engine_command(engine, planned, start, resolved=resolved, folder=folder)
    write_files(command)
    return supervise(
        command.argv,
        environment=command.environment,
        attempt=attempt,
        save_seconds=planned.plan.shutdown_timeout_seconds,
        how_to_go_on="run the same command again"
        + ("" if start.resume == "auto" else " with --resume auto"),
    )


def _check_this_machine(planned: PlannedRun) -> None:
    """Refuse to start a plan for GPUs that are not here: torch would quietly take the CPU.

    Raises: EnvironmentProblem.
    """
    if planned.plan.device != "cuda":
        return
    found = detect(Path(planned.config.output_dir))
    here, needed = found.profile.gpus_per_node, planned.plan.processes_per_node
    if found.profile.device != "cuda" or here < needed:
        raise EnvironmentProblem(
            f"the plan is for {needed} GPU(s) here, and there are {here} "
            f"({'; '.join(found.reasons)})",
            rule=f"a run on profile {planned.plan.profile} starts on a machine like it",
            fix="use --profile auto here, or start this there; `rankzero plan` works anywhere",
        )
    gpu, expected = found.profile.gpu, planned.profile.gpu
    if gpu is not None and expected is not None and gpu.memory_gib < 0.97 * expected.memory_gib:
        click.echo(
            f"warning: the GPUs here have {gpu.memory_gib:.1f} GiB, profile "
            f"{planned.plan.profile} says {expected.memory_gib:.1f}",
            err=True,
        )
