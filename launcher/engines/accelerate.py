"""`accelerate launch` with a config file that holds every setting. PURE.

The type is MULTI_GPU under ZeRO too, and even on CPUs:
- DEEPSPEED makes Accelerate a second owner of the DeepSpeed settings (`TrainingArguments` has
  them already), and on several nodes it starts through ssh and writes `.deepspeed_env`.
- MULTI_CPU starts a single process, whatever `num_processes` says, unless mpirun is there; with
  MULTI_GPU and `use_cpu` the ranks are real.
Source: accelerate 1.15, commands/launch.py (`launch_command`), utils/launch.py.
"""

from __future__ import annotations

import json
from typing import Any

from launcher.engines.launch import TRAINER, EngineCommand, Launch
from launcher.engines.torchrun import SHUTDOWN_TIMEOUT

FILE_NAME = "accelerate.yaml"


def accelerate_command(launch: Launch) -> EngineCommand:
    """Return the command and the config file it reads."""
    path = launch.folder / FILE_NAME
    return EngineCommand(
        argv=[
            *(launch.python, "-m", "accelerate.commands.launch"),
            *("--config_file", str(path)),
            *("-m", TRAINER, *launch.trainer_arguments),
        ],
        # Accelerate runs torchrun inside itself.
        environment={SHUTDOWN_TIMEOUT: str(launch.shutdown_timeout_seconds)},
        files={path: _to_yaml(_settings(launch))},
    )


def _settings(launch: Launch) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": "MULTI_GPU" if launch.world_size > 1 else "NO",
        "num_machines": launch.nodes,
        "machine_rank": launch.node_rank,
        "num_processes": launch.world_size,
        "main_process_port": 0,  # a free one
        "main_training_function": "main",
        "mixed_precision": "no" if launch.precision == "fp32" else launch.precision,
        "use_cpu": launch.device == "cpu",
        "gpu_ids": ",".join(launch.devices) or "all",
        "rdzv_backend": "static",
        "same_network": True,
        "enable_cpu_affinity": False,
    }
    if launch.nodes > 1:
        host, port = launch.address()
        settings |= {"main_process_ip": host, "main_process_port": port}
    return settings


def _to_yaml(settings: dict[str, Any]) -> str:
    """Write flat YAML; JSON's scalars are YAML's."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in settings.items())
