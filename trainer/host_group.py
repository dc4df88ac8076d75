"""What ranks say to each other from host to host, beside the collectives of training.

A gloo group of its own: it needs no GPU and orders nothing behind the work queued there.
"""

from __future__ import annotations

from datetime import timedelta
from signal import Signals
from typing import Any, TypeVar

import torch
from torch import distributed

from trainer.errors import Interrupted
from trainer.interruption import requested
from trainer.world import World

Value = TypeVar("Value")
_SAVE_TIMEOUT = timedelta(hours=2)
"""How long the others wait while rank 0 writes: hundreds of GB on a slow disk."""


class AgreedStop(Interrupted):
    """Every rank raises this at the same place: what follows may still be collective."""


class HostGroup:
    """All ranks, as one machine's processes talk. Ranks: every method is collective."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._group = (
            distributed.new_group(backend="gloo", timeout=_SAVE_TIMEOUT)
            if distributed.is_initialized() and world.world_size > 1
            else None
        )
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._answer: distributed.Work | None = None

    def stop_if_agreed(self) -> None:
        """Stop all ranks at the same place once any of them was asked to.

        The question travels while the micro-batch between two calls is computed, so an answer costs
        no waiting and comes one call late. Call it equally often on every rank.
        Raises: AgreedStop.
        """
        if self._group is None:
            number = int(requested() or 0)
        else:
            number = self._last_answer()
            self._flag.fill_(int(requested() or 0))
            self._answer = distributed.all_reduce(
                self._flag, op=distributed.ReduceOp.MAX, group=self._group, async_op=True
            )
        if number:
            raise AgreedStop(f"stopped by {Signals(number).name}")

    def _last_answer(self) -> int:
        if self._answer is None:
            return 0
        self._answer.wait()
        return int(self._flag)

    def wait_for_all(self) -> None:
        """Go on once every rank is here."""
        if self._group is not None:
            distributed.barrier(group=self._group)

    def from_rank_zero(self, value: Value) -> Value:
        """Return rank 0's value on every rank; the others' is not looked at."""
        if self._group is None:
            return value
        held: list[Any] = [value]
        distributed.broadcast_object_list(held, src=0, group=self._group)
        received: Value = held[0]
        return received

    def to_rank_zero(self, value: Value) -> list[Value]:
        """Return every rank's value, in the order of ranks, on rank 0; elsewhere nothing."""
        if self._group is None:
            return [value]
        values: list[Any] | None = (
            [None] * self.world.world_size if self.world.is_rank_zero else None
        )
        distributed.gather_object(value, values, dst=0, group=self._group)
        return values or []

    def tensor_from_rank_zero(self, tensor: torch.Tensor) -> torch.Tensor:
        """Fill `tensor`, on the host, with rank 0's content."""
        if self._group is not None:
            distributed.broadcast(tensor, src=0, group=self._group)
        return tensor
