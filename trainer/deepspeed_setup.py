"""DeepSpeed as the engine of a run: its config file, and joining its process group."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from trainer.config import TrainingConfig
from trainer.errors import ConfigError, EnvironmentProblem
from trainer.shipped import shipped_folder
from trainer.world import World


def find_deepspeed_config(name: str) -> Path:
    """Find a DeepSpeed JSON file by path, or by its name among the shipped ones.

    Raises: ConfigError naming the shipped ones.
    """
    shipped = shipped_folder("deepspeed_configs")
    by_name = shipped / Path(name).name
    for candidate in (Path(name), by_name, by_name.with_suffix(".json")):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(path.stem for path in shipped.glob("*.json")))
    raise ConfigError(
        f"training.deepspeed_config: there is no file {name}",
        rule=f"a path to a DeepSpeed JSON file, or one of {known}",
        fix="check the path, or take one of those names",
    )


def deepspeed_arguments(training: TrainingConfig, world: World, device_type: str) -> dict[str, Any]:
    """Return what `TrainingArguments` needs for DeepSpeed; nothing when it is not asked for.

    Ranks: collective when DeepSpeed is asked for.
    """
    if training.deepspeed_config is None:
        return {}
    path = find_deepspeed_config(training.deepspeed_config)
    if importlib.util.find_spec("deepspeed") is None:
        raise EnvironmentProblem(
            "training.deepspeed_config is set, and deepspeed is not installed",
            rule="DeepSpeed runs on Linux",
            fix="pip install deepspeed, or take training.deepspeed_config out",
        )
    if device_type == "cpu":
        _join_cpu_process_group(world)
    return {"deepspeed": str(path)}


def _join_cpu_process_group(world: World) -> None:
    """Join with gloo before `TrainingArguments` does it.

    Left to it, zero.Init sees a world of one rank and the batch arithmetic fails.
    Source: measured with deepspeed 0.19 and torch 2.13.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    alone = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    if world.world_size == 1:
        for name, value in alone.items():
            os.environ.setdefault(name, value)
    import deepspeed  # slow to import, and absent on macOS

    deepspeed.init_distributed(dist_backend="gloo")
