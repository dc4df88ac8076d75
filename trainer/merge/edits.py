"""What a merge does to one stored tensor, block of rows by block of rows.

Every product has the order and orientation of PEFT's, so that float32 results are its results.

Shapes: O rows and I columns of the stored matrix, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.errors import ConfigError, RankZeroError, TrainingFailed
from trainer.merge.weight_files import Rows, StoredTensor

Block = tuple[int, int, Tensor]
"""First row, row after the last, and the rows themselves."""


@dataclass(frozen=True)
class Edit:
    """A stored tensor of the base, and what becomes of it."""

    target: StoredTensor

    @property
    def used(self) -> tuple[StoredTensor, ...]:
        """The adapter's tensors that go into it."""
        return ()

    def must_change(self) -> bool:
        """Tell whether the adapter's part is not zero."""
        return False

    def open(self, dtype: torch.dtype | None = None) -> Rows:
        """Return what computes merged rows, in this type or else in that of the base.

        Raises (when computing): TrainingFailed when they are not finite.
        """
        compute, target = self._open(), self.target
        dtype = dtype or target.dtype

        def rows(start: int, stop: int) -> Tensor:
            merged = compute(start, stop).to(dtype)
            # One pass, and not-a-number comes through; `isfinite().all()` takes several.
            if merged.numel() and not torch.stack(torch.aminmax(merged)).isfinite().all():
                raise self._not_finite(dtype)
            return merged

        return rows

    def _not_finite(self, dtype: torch.dtype) -> RankZeroError:
        return TrainingFailed(
            f"the adapter cannot be merged: {self.target.name} would not be finite",
            rule=f"every merged weight is a number that {dtype} can hold",
            fix="merge an earlier checkpoint: RUN/checkpoints/step-N",
        )

    def blocks(self, dtype: torch.dtype | None = None) -> Iterator[Block]:
        """Yield the merged rows. Raises: TrainingFailed when they are not finite."""
        rows = self.open(dtype)
        for start, stop in self.target.blocks():
            yield start, stop, rows(start, stop)

    def _open(self) -> Rows:
        raise NotImplementedError


@dataclass(frozen=True)
class EditedTensor(StoredTensor):
    """A tensor of the base as an edit leaves it."""

    edit: Edit

    @classmethod
    def of(cls, edit: Edit) -> EditedTensor:
        target = edit.target
        return cls(*target.place, target.dtype, target.shape, target.offset, edit)

    def open(self) -> Rows:
        return self.edit.open()

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        return self.open()(start, self.num_rows if stop is None else stop)


@dataclass(frozen=True)
class Unchanged(Edit):
    """A tensor that is only written in another type."""

    def _not_finite(self, dtype: torch.dtype) -> RankZeroError:
        return ConfigError(
            f"--dtype {dtype}: {self.target.name} of the base holds larger numbers",
            rule="every weight is a number that the type can hold",
            fix="choose --dtype bfloat16 or float32",
        )

    def _open(self) -> Rows:
        return self.target.open()


@dataclass(frozen=True)
class Replaced(Edit):
    """A tensor trained in full: modules_to_save, or a bias."""

    values: StoredTensor

    @property
    def used(self) -> tuple[StoredTensor, ...]:
        return (self.values,)

    def _open(self) -> Rows:
        return self.values.open()


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

    def _open(self) -> Rows:
        a, b, base = _widened(self.a.read()), _widened(self.b.read()), self.target.open()
        total, delta = torch.empty(0), torch.empty(0)

        def rows(start: int, stop: int) -> Tensor:
            nonlocal total, delta
            before = base(start, stop)
            shape = before.shape
            if total.shape != shape:
                total = torch.empty(shape, dtype=torch.promote_types(before.dtype, a.dtype))
                delta = torch.empty(shape[::-1] if self.is_transposed else shape, dtype=a.dtype)
            if self.is_transposed:
                torch.mm(b, a[:, start:stop], out=delta)
                return torch.add(before, delta.T.mul_(self.scaling), out=total)
            torch.mm(b[start:stop], a, out=delta)
            return torch.add(before, delta.mul_(self.scaling), out=total)

        return rows


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

    def _open(self) -> Rows:
        total, magnitude = super()._open(), _widened(self.magnitude.read())
        if self.is_transposed:  # an output's inputs lie in all rows
            whole = total(0, self.target.num_rows)
            scale = (magnitude / torch.linalg.norm(whole, dim=0)).view(1, -1)
            return lambda start, stop: scale * whole[start:stop]

        def rows(start: int, stop: int) -> Tensor:
            some = total(start, stop)
            scale: Tensor = magnitude[start:stop] / torch.linalg.norm(some, dim=1)
            return scale.view(-1, 1) * some

        return rows


def _widened(tensor: Tensor) -> Tensor:
    """16-bit weights are added in float32 and rounded once."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
