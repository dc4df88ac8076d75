"""What a merge does to one stored tensor, block of rows by block of rows.

Every product has the order and orientation of PEFT's, so that float32 results are its results.

Shapes: O rows and I columns of the stored matrix, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.errors import TrainingFailed
from trainer.merge.weight_files import StoredTensor

Block = tuple[int, int, Tensor]
"""First row, row after the last, and the rows themselves in the type of the base."""


@dataclass(frozen=True)
class Edit:
    """A stored tensor of the base that the adapter changes."""

    target: StoredTensor

    @property
    def used(self) -> tuple[StoredTensor, ...]:
        """The adapter's tensors that go into it."""
        raise NotImplementedError

    def blocks(self) -> Iterator[Block]:
        """Yield the merged rows. Raises: TrainingFailed when they are not finite."""
        for start, stop, merged in self._merged():
            rows = merged.to(self.target.dtype)
            # One pass, and not-a-number comes through; `isfinite().all()` takes several.
            if not torch.stack(torch.aminmax(rows)).isfinite().all():
                raise TrainingFailed(
                    f"the adapter cannot be merged: {self.target.name} would not be finite",
                    rule=f"every merged weight is a number that {self.target.dtype} can hold",
                    fix="merge an earlier checkpoint: RUN/checkpoints/step-N",
                )
            yield start, stop, rows

    def must_change(self) -> bool:
        """Tell whether the adapter's part is not zero."""
        return False

    def _merged(self) -> Iterator[Block]:
        raise NotImplementedError


@dataclass(frozen=True)
class Replaced(Edit):
    """A tensor trained in full: modules_to_save, or a bias."""

    values: StoredTensor

    @property
    def used(self) -> tuple[StoredTensor, ...]:
        return (self.values,)

    def _merged(self) -> Iterator[Block]:
        for start, stop in self.target.blocks():
            yield start, stop, self.values.read(start, stop)


@dataclass(frozen=True)
class LowRank(Edit):
    """W + scaling x B A.

    Shapes: a [r, I], b [O, r]; where the layer is stored transposed (Conv1D, embeddings) a [r, O],
        b [I, r].
    """

    a: StoredTensor
    b: StoredTensor
    scaling: float
    is_transposed: bool

    @property
    def used(self) -> tuple[StoredTensor, ...]:
        return (self.a, self.b)

    def must_change(self) -> bool:
        return all(bool(torch.count_nonzero(factor.read())) for factor in (self.a, self.b))

    def _merged(self) -> Iterator[Block]:
        a, b = _widened(self.a.read()), _widened(self.b.read())
        for start, stop in self.target.blocks():
            delta = self._delta(a, b, start, stop)
            yield start, stop, _widened(self.target.read(start, stop)).add_(delta)

    def _delta(self, a: Tensor, b: Tensor, start: int, stop: int) -> Tensor:
        if self.is_transposed:
            return (b @ a[:, start:stop]).T.mul_(self.scaling)
        return (b[start:stop] @ a).mul_(self.scaling)


@dataclass(frozen=True)
class Dora(LowRank):
    """magnitude x (W + scaling x B A) / its norm over the inputs of each output.

    Source: DoRA, equation 5, https://arxiv.org/abs/2402.09353
    """

    magnitude: StoredTensor

    @property
    def used(self) -> tuple[StoredTensor, ...]:
        return (self.a, self.b, self.magnitude)

    def must_change(self) -> bool:
        return False  # a magnitude that was not trained undoes nothing and changes nothing

    def _merged(self) -> Iterator[Block]:
        a, b = _widened(self.a.read()), _widened(self.b.read())
        magnitude = _widened(self.magnitude.read())
        if self.is_transposed:  # an output's inputs lie in all rows
            total = _widened(self.target.read()) + self._delta(a, b, 0, self.target.num_rows)
            scale = magnitude / torch.linalg.norm(total, dim=0)
            yield 0, self.target.num_rows, scale.view(1, -1) * total
            return
        for start, stop in self.target.blocks():
            total = _widened(self.target.read(start, stop)) + self._delta(a, b, start, stop)
            scale = magnitude[start:stop] / torch.linalg.norm(total, dim=1)
            yield start, stop, scale.view(-1, 1) * total


def _widened(tensor: Tensor) -> Tensor:
    """16-bit weights are added in float32 and rounded once."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
