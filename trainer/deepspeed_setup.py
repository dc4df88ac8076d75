"""DeepSpeed as the engine of a run: its config, and joining its process group."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch

from trainer.config import Quantization, TrainingConfig
from trainer.deepspeed_config import (
    check_deepspeed_config,
    completed,
    find_deepspeed_config,
    load_deepspeed_config,
)
from trainer.errors import EnvironmentProblem
from trainer.world import World


def deepspeed_arguments(
    training: TrainingConfig,
    world: World,
    device_type: str,
    *,
    quantization: Quantization = "none",
) -> dict[str, Any]:
    """Return what `TrainingArguments` needs for DeepSpeed; nothing when it is not asked for.

    Ranks: collective when DeepSpeed is asked for.
    Raises: ConfigError when the DeepSpeed config contradicts the run config.
    """
    if training.deepspeed_config is None:
        return {}
    path = find_deepspeed_config(training.deepspeed_config)
    settings = load_deepspeed_config(path)
    check_deepspeed_config(path, settings, training, quantization=quantization)
    if importlib.util.find_spec("deepspeed") is None:
        raise EnvironmentProblem(
            "training.deepspeed_config is set, and deepspeed is not installed",
            rule="DeepSpeed runs on Linux",
            fix="pip install deepspeed, or take training.deepspeed_config out",
        )
    if device_type == "cpu":
        _join_cpu_process_group(world)
    return {"deepspeed": completed(settings)}


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
    _unlink_shared_buffer(world)


def _unlink_shared_buffer(world: World) -> None:
    """Take the name off DeepSpeed's 66 MiB in /dev/shm, which no rank ever does.

    Every rank has it mapped by then, so the memory lives exactly as long as they do, killed or not.
    Source: deepspeed 0.19, ops/csrc/cpu/comm/shm.cpp (shm_initialize; shared_close is not called).
    """
    torch.distributed.barrier()
    place = f"{os.getuid()}_{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_{world.rank}"
    Path("/dev/shm", f"deepspeed_allreduce_buffer_{place}").unlink(missing_ok=True)
