"""One run from its plan: directory, preparation, and the engine that carries it out."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from launcher.attempt import Attempt
from launcher.engines import EngineCommand, EngineName, Launch, make_engine_command, shell_line
from launcher.engines.launch import host_and_port
from launcher.engines.rendezvous import free_local_rendezvous
from launcher.hardware import detect
from launcher.meeting import Place, meet
from launcher.planning import PlannedRun
from launcher.run_directory import CreatedRun, create_attempt, goes_on, is_complete, write_plan
from launcher.strategy import Zero
from launcher.supervise import supervise
from trainer.config import to_json
from trainer.config_paths import with_absolute_paths
from trainer.deepspeed_config import (
    completed,
    find_deepspeed_config,
    load_deepspeed_config,
    with_nvme,
)
from trainer.errors import ConfigError, EnvironmentProblem, RankZeroError
from trainer.run_check import check_run
from trainer.run_directory import RunDirectory
from trainer.status import Ending, write_termination_log, write_verdict

DRY_RUN_FOLDER = "dry-run"


@dataclass(frozen=True)
class Start:
    """Which machine of a run this is, and what the run goes on from."""

    node_rank: int = 0
    rendezvous: str | None = None
    resume: str = "auto"


def prepare_command(resolved: Path) -> list[str]:
    """Return the command that prepares the data of a resolved config. PURE."""
    return [sys.executable, "-m", "trainer.prepare", "--config", str(resolved)]


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
    resolved = _write_resolved(planned, folder)
    lines = ["# first: prepare the data", shell_line(EngineCommand(prepare_command(resolved)))]
    chosen = planned.plan.engine
    for engine in (chosen, *(name for name in _ENGINES if name != chosen)):
        launch = _launch(planned, start, resolved, folder)
        try:
            command = make_engine_command(engine, launch)
        except ConfigError as error:
            lines.append(f"# {engine}: not possible here ({error.what})")
            continue
        _write_files(command)
        lines += [f"# {engine}: {'chosen' if engine == chosen else 'or'}", shell_line(command)]
    return "\n".join(lines)


_ENGINES: tuple[EngineName, ...] = ("python", "torchrun", "accelerate", "deepspeed")


def start_run(planned: PlannedRun, given: Path, start: Start) -> int:
    """Prepare the data and train, in a new run directory or going on in one; return the exit code.

    A run that is complete already, and the same, is left as it is.
    Raises: RankZeroError, with the exit code of the rank that caused it.
    """
    run = RunDirectory(Path(planned.config.output_dir).absolute())
    if start.resume == "auto" and is_complete(run, _resolved(planned)):
        click.echo(f"{run.path} is complete: nothing to do", err=True)
        click.echo(f"its result: {run.adapter if run.adapter.exists() else run.model}", err=True)
        return 0
    _check_this_machine(planned)
    if start.node_rank == 0:
        check_run(planned.config, start.resume)
    with _nvme_folder(planned) as located:
        # Before anything is written: an engine that cannot start this plan says so now.
        make_engine_command(planned.plan.engine, _launch(located, start, run.path, run.path))
        if start.node_rank:
            return _join_run(located, start, run)
        if goes_on(run, start.resume):
            return _go_on(located, given, start, run)
        return _begin(located, given, start, run)


def _begin(planned: PlannedRun, given: Path, start: Start, run: RunDirectory) -> int:
    """Train in a new run directory, which is given back when preparing fails: it holds no run."""
    created = CreatedRun.create(run.path, given, _resolved(planned), resume=start.resume)
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
    attempt = create_attempt(run, given, _resolved(planned), planned.plan)
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
    resolved = _write_resolved(planned, attempt.folder)
    code = supervise(prepare_command(resolved))
    return code or _train(planned, start, resolved, attempt)


def _train(planned: PlannedRun, start: Start, resolved: Path, attempt: Attempt) -> int:
    if planned.plan.nodes > 1:
        start = _meet_other_nodes(planned, start, attempt)
    if start.node_rank:
        log = attempt.log(start.node_rank * planned.plan.processes_per_node)
        click.echo(f"node 0 shows the progress; the log of this node: {log}", err=True)
    else:  # some seconds pass before it can say anything itself
        click.echo("starting the trainer", err=True)
    launch = _launch(planned, start, resolved, attempt.folder)
    command = make_engine_command(planned.plan.engine, launch)
    _write_files(command)
    return supervise(
        command.argv,
        environment=command.environment,
        attempt=attempt,
        save_seconds=planned.plan.shutdown_timeout_seconds,
        how_to_go_on="run the same command again"
        + ("" if start.resume == "auto" else " with --resume auto"),
    )


def _meet_other_nodes(planned: PlannedRun, start: Start, attempt: Attempt) -> Start:
    """Return the start with the place where the engines of all nodes meet."""
    plan = planned.plan
    host, port = host_and_port(start.rendezvous)
    place = Place(
        host=host,
        port=port,
        nodes=plan.nodes,
        node_rank=start.node_rank,
        run=alike_on_all_nodes(planned, start),
        attempt=attempt.folder,
        needs_shared_storage=plan.saves_in_parts,
    )
    try:
        return replace(start, rendezvous=f"[{host}]:{meet(place)}")
    except RankZeroError as error:
        ending = Ending.of(error)
        # What an earlier attempt came to stays; so does what another node says.
        if start.node_rank == 0 and attempt.run.read_status().get("state") == "preparing":
            write_verdict(attempt.run, ending)
        else:
            write_termination_log(ending)
        raise


def alike_on_all_nodes(planned: PlannedRun, start: Start) -> dict[str, Any]:
    """Return what the nodes of a run must have alike, by name. PURE.

    Where the model, the caches and the output lie may differ from machine to machine.
    """
    plan, config = planned.plan, planned.config.model_dump(mode="json")
    config["model"].pop("name")
    config["data"].pop("cache_dir")
    config["training"].pop("deepspeed_config")
    config.pop("output_dir")
    return {
        "--resume": start.resume if start.resume in ("auto", "never") else "PATH",
        "nodes": plan.nodes,
        "processes per node": plan.processes_per_node,
        "device": plan.device,
        "engine": plan.engine,
        "strategy": plan.strategy,
        **{
            f"{section}.{name}": value
            for section, settings in config.items()
            if isinstance(settings, dict)
            for name, value in settings.items()
        },
        "seed": planned.config.seed,
    }


def _launch(planned: PlannedRun, start: Start, resolved: Path, folder: Path) -> Launch:
    plan = planned.plan
    own = planned.config.training.deepspeed_config
    return Launch(
        python=sys.executable,
        resolved=resolved,
        folder=folder,
        processes=plan.processes_per_node,
        precision=plan.precision,
        shutdown_timeout_seconds=plan.shutdown_timeout_seconds,
        resume=start.resume,
        nodes=plan.nodes,
        node_rank=start.node_rank,
        rendezvous=start.rendezvous or (free_local_rendezvous() if plan.nodes == 1 else None),
        device=plan.device,
        devices=visible_devices(os.environ) if plan.device == "cuda" else (),
        deepspeed_config=None if own is None else find_deepspeed_config(own),
        threads=threads_of(planned, os.environ),
    )


def threads_of(planned: PlannedRun, environment: Mapping[str, str]) -> int | None:
    """Return a process's share of the cores; none where it is alone, or a user chose. PURE."""
    processes = planned.plan.processes_per_node
    if processes == 1 or "OMP_NUM_THREADS" in environment:
        return None
    return max(1, int(planned.profile.host.cpu_cores) // processes)


def visible_devices(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the GPUs this process was given; none named: all of them. PURE.

    DeepSpeed's launcher sets CUDA_VISIBLE_DEVICES anew, so it must be told.
    """
    words = (word.strip() for word in environment.get("CUDA_VISIBLE_DEVICES", "").split(","))
    return tuple(itertools.takewhile(lambda word: word not in ("", "-1"), words))


def _resolved(planned: PlannedRun) -> str:
    return to_json(with_absolute_paths(planned.config))


def _write_resolved(planned: PlannedRun, folder: Path) -> Path:
    path = folder / "resolved.json"
    path.write_text(_resolved(planned), encoding="utf-8")
    return path


def _write_files(command: EngineCommand) -> None:
    for path, text in command.files.items():
        path.write_text(text, encoding="utf-8")


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


@contextmanager
def _nvme_folder(planned: PlannedRun) -> Iterator[PlannedRun]:
    """Give a run that offloads to NVMe its own folder there, and clear it afterwards."""
    own, nvme = planned.config.training.deepspeed_config, planned.profile.nvme
    settings = {} if own is None else load_deepspeed_config(find_deepspeed_config(own))
    zero = Zero.read(settings)
    if nvme is None or "nvme" not in (zero.parameters_on, zero.optimizer_on):
        yield planned
        return
    folder = Path(nvme.path) / f"rankzero-{uuid.uuid4().hex}"
    folder.mkdir(parents=True, exist_ok=True)
    rendered = folder / "deepspeed.json"
    content = with_nvme(
        completed(settings),
        folder,
        largest_parameter=planned.largest_parameter,
        world_size=planned.plan.world_size,
    )
    rendered.write_text(json.dumps(content, indent=2), encoding="utf-8")
    training = planned.config.training.model_copy(update={"deepspeed_config": str(rendered)})
    try:
        yield replace(planned, config=planned.config.model_copy(update={"training": training}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
