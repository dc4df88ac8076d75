"""How a plan is started here: which node this is, and the plan in the words of an engine."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.engines import EngineCommand, EngineName, Launch, make_engine_command
from launcher.engines.rendezvous import free_local_rendezvous
from launcher.planning import PlannedRun
from trainer.config import to_json
from trainer.config_paths import with_absolute_paths
from trainer.deepspeed_config import find_deepspeed_config
from trainer.run_directory import RunDirectory


@dataclass(frozen=True)
class Start:
    """Which machine of a run this is, and what the run goes on from."""

    node_rank: int = 0
    rendezvous: str | None = None
    resume: str = "auto"


def prepare_command(resolved: Path) -> list[str]:
    """Return the command that prepares the data of a resolved config. PURE."""
    return [sys.executable, "-m", "trainer.prepare", "--config", str(resolved)]


def resolved_config(planned: PlannedRun) -> str:
    """Return what resolved.json says."""
    return to_json(with_absolute_paths(planned.config))


def write_resolved_config(planned: PlannedRun, folder: Path) -> Path:
    path = RunDirectory(folder).resolved_config
    path.write_text(resolved_config(planned), encoding="utf-8")
    return path


def engine_command(
    engine: EngineName, planned: PlannedRun, start: Start, *, resolved: Path, folder: Path
) -> EngineCommand:
    """Return the command that starts this node's ranks; `folder` is for the files it names.

    Raises: ConfigError when this engine cannot carry the plan out.
    """
    return make_engine_command(engine, _launch(planned, start, resolved, folder))


def write_files(command: EngineCommand) -> None:
    """Write the files that a command names."""
    for path, text in command.files.items():
        path.write_text(text, encoding="utf-8")


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
