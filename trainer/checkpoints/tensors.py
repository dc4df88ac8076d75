"""Tensors of a checkpoint, read by rank 0 and shared with every rank."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from trainer.errors import EnvironmentProblem
from trainer.host_group import HostGroup


class SharedTensors:
    """The tensors of some files on rank 0, one at a time, on every rank.

    Ranks: `get` is collective; every rank asks for the same names in the same order.
    """

    def __init__(self, folder: Path, pattern: str, group: HostGroup) -> None:
        self._group = group
        self._file_of: dict[str, Path] = {}
        index: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        if group.world.is_rank_zero:
            files = sorted(folder.glob(pattern))
            if not files:
                raise EnvironmentProblem(
                    f"there is no {pattern} in {folder}",
                    rule="a run needs the checkpoints it goes back to",
                    fix="bring the folder back; `rankzero checkpoints RUN --verify` checks all",
                )
            for file in files:
                with safe_open(file, "pt") as opened:
                    for name in opened.keys():  # noqa: SIM118  (not a dict)
                        tensor = opened.get_tensor(name)  # mapped, not read
                        index[name] = (tensor.dtype, tuple(tensor.shape))
                        self._file_of[name] = file
        self._index = group.from_rank_zero(index)

    def names(self) -> list[str]:
        """Return every name, in the same order on every rank."""
        return list(self._index)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self._index[name][1]

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def get(self, name: str) -> torch.Tensor:
        """Return a tensor on the host."""
        dtype, shape = self._index[name]
        if self._group.world.is_rank_zero:
            with safe_open(self._file_of[name], "pt") as opened:
                tensor: torch.Tensor = opened.get_tensor(name)
        else:
            tensor = torch.empty(shape, dtype=dtype)
        # As bytes: gloo does not know every dtype.
        self._group.tensor_from_rank_zero(tensor.reshape(-1).view(torch.uint8))
        return tensor

    def all(self) -> dict[str, torch.Tensor]:
        """Return every tensor on the host."""
        return {name: self.get(name) for name in self._index}
