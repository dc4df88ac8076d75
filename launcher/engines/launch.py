"""What every engine needs to know to start a run, and what it answers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trainer.errors import ConfigError

EngineName = Literal["python", "torchrun", "accelerate", "deepspeed"]
Precision = Literal["bf16", "fp16", "fp32"]
TRAINER = "trainer"  # the module every engine starts


@dataclass(frozen=True)
class Launch:
    """One node's part of a run; every node has the same but for `node_rank` and `devices`."""

    python: str
    resolved: Path
    folder: Path  # of this attempt, for files an engine needs
    processes: int  # per node
    precision: Precision
    shutdown_timeout_seconds: int  # between SIGTERM and SIGKILL; above the time a save takes
    resume: str = "auto"  # or never, or what to go on from
    nodes: int = 1
    node_rank: int = 0
    rendezvous: str | None = None  # host:port of node 0
    device: Literal["cpu", "cuda", "mps"] = "cuda"
    devices: tuple[str, ...] = ()  # as in CUDA_VISIBLE_DEVICES; none: the first of the machine
    deepspeed_config: Path | None = None
    threads: int | None = None  # of one process; none: what the library takes, or the user's choice

    @property
    def world_size(self) -> int:
        return self.processes * self.nodes

    @property
    def trainer_arguments(self) -> list[str]:
        resume = [] if self.resume == "auto" else ["--resume", self.resume]
        return ["--config", str(self.resolved), *resume]

    def address(self) -> tuple[str, int]:
        """Return the host and port where the ranks meet; raises as `host_and_port`."""
        return host_and_port(self.rendezvous)


def host_and_port(rendezvous: str | None) -> tuple[str, int]:
    """Read --rendezvous. PURE.

    Raises: ConfigError when there is none, or it is not host:port.
    """
    host, _, port = (rendezvous or "").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        given = f"{rendezvous!r} is no host:port" if rendezvous else "not given"
        raise ConfigError(
            f"--rendezvous: {given}",
            rule="the ranks meet at an address of node 0 that every node can reach",
            fix="give --rendezvous HOST:PORT, the same on every node",
        )
    return host.strip("[]"), int(port)  # an IPv6 address is written in brackets


@dataclass(frozen=True)
class EngineCommand:
    """A command to start as it is: no shell, these variables added to the environment."""

    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)  # to write before the start


def shell_line(command: EngineCommand) -> str:
    """Return one line that does the same in a POSIX shell, once the files are written."""
    assignments = [f"{name}={shlex.quote(value)}" for name, value in command.environment.items()]
    return " ".join([*assignments, shlex.join(command.argv)])


def check_launch(engine: EngineName, launch: Launch) -> None:
    """Refuse what this engine, or any, cannot start.

    Raises: ConfigError.
    """
    if launch.processes < 1 or launch.nodes < 1:
        raise ConfigError(
            f"{launch.processes} processes on each of {launch.nodes} nodes",
            rule="at least one process and one node",
            fix="set --processes and --nodes to match",
        )
    if not 0 <= launch.node_rank < launch.nodes:
        raise ConfigError(
            f"--node-rank {launch.node_rank} with {launch.nodes} node(s)",
            rule="nodes count from 0 to --nodes - 1",
            fix="set --nodes and --node-rank to match",
        )
    if engine == "python" and launch.world_size > 1:
        raise ConfigError(
            f"--engine python with {launch.world_size} processes",
            rule="the python engine is one process on one machine",
            fix="use --engine torchrun, or --processes 1",
        )
    if engine == "deepspeed" and launch.deepspeed_config is None:
        raise ConfigError(
            "--engine deepspeed without a DeepSpeed config",
            rule="the deepspeed launcher starts runs that use ZeRO",
            fix="set training.deepspeed_config to zero2 or another, or use --engine torchrun",
        )
    if launch.device == "mps" and launch.world_size > 1:
        raise ConfigError(
            f"{launch.world_size} processes on Apple MPS",
            rule="a Mac has one GPU, and MPS cannot talk to other processes",
            fix="use --processes 1",
        )
    if launch.devices and len(launch.devices) < launch.processes:
        raise ConfigError(
            f"{launch.processes} processes for the devices {','.join(launch.devices)}",
            rule="every process has a GPU of its own",
            fix=f"use --processes {len(launch.devices)}, or make more devices visible",
        )
    if launch.nodes > 1:
        launch.address()
