"""One run from its plan: directory, preparation, and the engine that carries it out."""

from __future__ import annotations

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

import click

from launcher.attempt import Attempt
from launcher.engines import EngineCommand, EngineName, Launch, make_engine_command, shell_line
from launcher.engines.rendezvous import free_local_rendezvous
from launcher.hardware import detect
from launcher.planning import PlannedRun
from launcher.run_directory import CreatedRun
from launcher.strategy import Zero
from launcher.supervise import supervise
from trainer.config import Config, to_json
from trainer.config_paths import with_absolute_paths
from trainer.deepspeed_config import (
    completed,
    find_deepspeed_config,
    load_deepspeed_config,
    with_nvme,
)
from trainer.errors import ConfigError, EnvironmentProblem
from trainer.run_directory import RunDirectory

# torchrun kills its workers so long after SIGTERM; writing adapters takes seconds.
SHUTDOWN_TIMEOUT_SECONDS = 120
DRY_RUN_FOLDER = "dry-run"


@dataclass(frozen=True)
class Node:
    """Which machine of a run this is."""

    rank: int = 0
    rendezvous: str | None = None


def require_free_directory(config: Config, node_rank: int) -> None:
    """Refuse an output_dir that holds a run, before any time is spent on planning.

    Raises: ConfigError.
    """
    if node_rank == 0:
        directory = RunDirectory(Path(config.output_dir).absolute())
        directory.refuse_run(directory.resolved_config)


def prepare_command(resolved: Path) -> list[str]:
    """Return the command that prepares the data of a resolved config. PURE."""
    return [sys.executable, "-m", "trainer.prepare", "--config", str(resolved)]


def show_run(planned: PlannedRun, node: Node) -> str:
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
        launch = _launch(planned, node, resolved, folder)
        try:
            command = make_engine_command(engine, launch)
        except ConfigError as error:
            lines.append(f"# {engine}: not possible here ({error.what})")
            continue
        _write_files(command)
        lines += [f"# {engine}: {'chosen' if engine == chosen else 'or'}", shell_line(command)]
    return "\n".join(lines)


_ENGINES: tuple[EngineName, ...] = ("python", "torchrun", "accelerate", "deepspeed")


def start_run(planned: PlannedRun, given: Path, node: Node) -> int:
    """Create the run directory, prepare the data, train; return the exit code.

    When preparing fails the directory holds no run yet, and is given back.
    Raises: RankZeroError, with the exit code of the rank that caused it.
    """
    _check_this_machine(planned)
    output = Path(planned.config.output_dir).absolute()
    with _nvme_folder(planned) as located:
        # Before anything is written: an engine that cannot start this plan says so now.
        make_engine_command(planned.plan.engine, _launch(located, node, output, output))
        if node.rank:
            return _train(located, node, Attempt.create(output, node_rank=node.rank))
        created = CreatedRun.create(output, given, _resolved(located))
        is_prepared = False
        try:
            code = supervise(prepare_command(created.directory.resolved_config))
            is_prepared = code == 0
        finally:
            if not is_prepared:
                created.give_back()
        if not is_prepared:
            return code
        text = planned.plan.model_dump_json(indent=2) + "\n"
        created.directory.plan.write_text(text, encoding="utf-8")
        return _train(located, node, Attempt.create(output))


def _train(planned: PlannedRun, node: Node, attempt: Attempt) -> int:
    resolved = attempt.run.resolved_config
    if node.rank:  # the run directory is node 0's; it may be on another disk
        resolved = _write_resolved(planned, attempt.folder)
        code = supervise(prepare_command(resolved))
        if code:
            return code
    launch = _launch(planned, node, resolved, attempt.folder)
    command = make_engine_command(planned.plan.engine, launch)
    _write_files(command)
    return supervise(command.argv, environment=command.environment, attempt=attempt)


def _launch(planned: PlannedRun, node: Node, resolved: Path, folder: Path) -> Launch:
    plan = planned.plan
    own = planned.config.training.deepspeed_config
    return Launch(
        python=sys.executable,
        resolved=resolved,
        folder=folder,
        processes=plan.processes_per_node,
        precision=plan.precision,
        shutdown_timeout_seconds=SHUTDOWN_TIMEOUT_SECONDS,
        nodes=plan.nodes,
        node_rank=node.rank,
        rendezvous=node.rendezvous or (free_local_rendezvous() if plan.nodes == 1 else None),
        device=plan.device,
        devices=visible_devices(os.environ) if plan.device == "cuda" else (),
        deepspeed_config=None if own is None else find_deepspeed_config(own),
    )


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
