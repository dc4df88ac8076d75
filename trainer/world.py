"""Where this process stands among the ranks: the one place that reads the rank variables."""

from __future__ import annotations

import os
from dataclasses import dataclass

from trainer.errors import ConfigError


@dataclass(frozen=True)
class World:
    """Ranks count from 0; `local` ones count within this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0

    @property
    def is_first_on_node(self) -> bool:
        return self.local_rank == 0


def read_world() -> World:
    """Read the variables that torchrun, Accelerate and DeepSpeed all set. Absent: one process.

    Raises: ConfigError when only some of them are set or they contradict each other.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if "RANK" not in given and "WORLD_SIZE" not in given:
        return World()
    try:
        world = World(*(int(given[name]) for name in names))
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"the rank variables are incomplete: {given}",
            rule=f"{', '.join(names)} are whole numbers, set together by the launching program",
            fix="start with torchrun, accelerate launch or deepspeed, or unset them",
        ) from error
    if not 0 <= world.rank < world.world_size:
        raise ConfigError(
            f"RANK={world.rank} with WORLD_SIZE={world.world_size}",
            rule="0 <= RANK < WORLD_SIZE",
            fix="unset both, or let the launching program set them",
        )
    return world
