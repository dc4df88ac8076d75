"""From a run to the command lines that carry it out, one module per engine. PURE."""

from __future__ import annotations

from launcher.engines.accelerate import accelerate_command
from launcher.engines.deepspeed import deepspeed_command
from launcher.engines.launch import (
    EngineCommand,
    EngineName,
    Launch,
    check_launch,
    shell_line,
)
from launcher.engines.python import python_command
from launcher.engines.torchrun import torchrun_command

__all__ = [
    "EngineCommand",
    "EngineName",
    "Launch",
    "make_engine_command",
    "shell_line",
]

_ENGINES = {
    "python": python_command,
    "torchrun": torchrun_command,
    "accelerate": accelerate_command,
    "deepspeed": deepspeed_command,
}


def make_engine_command(engine: EngineName, launch: Launch) -> EngineCommand:
    """Return what starts this node's ranks.

    Raises: ConfigError for a combination that cannot start.
    """
    check_launch(engine, launch)
    command = _ENGINES[engine](launch)
    if launch.threads is not None:
        # Left to themselves torchrun and accelerate give each process one thread, too few for
        # ZeRO's optimizer on the host, and torchrun says so in 5 lines; deepspeed gives each all.
        command.environment["OMP_NUM_THREADS"] = str(launch.threads)
    if launch.device == "cpu":
        command.environment["CUDA_VISIBLE_DEVICES"] = ""  # a plan for the CPU, whatever is here
    return command
