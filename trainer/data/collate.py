"""Prepared rows -> the tensors of a rank's share of one step.

A micro-batch is one padding-free row: examples one after another, position ids restarting at
each, which is how transformers keeps attention from crossing between them.

Letters: T tokens of a micro-batch, N examples in it, L positions that predict a labelled token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from trainer.data.batching import Assignment, assign, curriculum_order, examples_of_step
from trainer.data.store import PreparedSplit
from trainer.interruption import leave_to_parent


class MicroBatch(NamedTuple):
    """One padding-free row. A named tuple, so that pinning and moving keep its type."""

    input_ids: torch.Tensor  # (1, T) int64
    position_ids: torch.Tensor  # (1, T) int64
    label_positions: torch.Tensor  # (L,) int64, into T
    targets: torch.Tensor  # (L,) int64, the token that follows each label position
    cu_seqlens: torch.Tensor  # (N + 1,) int32, always on the host: where examples begin, and T

    def to(self, device: torch.device) -> MicroBatch:
        """Move all but the boundaries; pinned memory is not waited for."""
        moved = (tensor.to(device, non_blocking=True) for tensor in self)
        return MicroBatch(*moved)._replace(cu_seqlens=self.cu_seqlens)


class StepShare(TypedDict):
    """What one rank computes in one step; labels and lengths are of the whole global batch."""

    micro_batches: list[MicroBatch]
    num_labels: int
    lengths: torch.Tensor  # (G,) int32, tokens of each example


def collate(rows: Sequence[tuple[NDArray[np.int32], NDArray[np.bool_]]]) -> MicroBatch:
    """Concatenate rows of (ids, loss mask). No row at all gives one token without a label.

    The first token of an example is never a target: nothing of that example precedes it.
    """
    if not rows:
        return MicroBatch(
            torch.zeros(1, 1, dtype=torch.int64),
            torch.zeros(1, 1, dtype=torch.int64),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, dtype=torch.int64),
            torch.tensor([0, 1], dtype=torch.int32),
        )
    ids = np.concatenate([row_ids for row_ids, _ in rows]).astype(np.int64)
    positions = np.concatenate([np.arange(len(row_ids)) for row_ids, _ in rows])
    labelled = np.concatenate([mask for _, mask in rows]) & (positions > 0)
    targets = np.flatnonzero(labelled)
    return MicroBatch(
        torch.from_numpy(ids)[None],
        torch.from_numpy(positions)[None],
        torch.from_numpy(targets - 1),
        torch.from_numpy(ids[targets]),
        torch.from_numpy(np.cumsum([0, *(len(row_ids) for row_ids, _ in rows)], dtype=np.int32)),
    )


class StepDataset(Dataset[StepShare]):
    """Item t is this rank's share of optimizer step t."""

    def __init__(
        self,
        split: PreparedSplit,
        *,
        num_steps: int,
        global_batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        max_tokens: int,
        max_examples: int | None,
    ) -> None:
        self.split, self.num_steps = split, num_steps
        self.global_batch_size, self.seed = global_batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.max_tokens, self.max_examples = max_tokens, max_examples
        keys = split.order_keys
        self.fixed_order = None if keys is None else curriculum_order(keys)

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> StepShare:
        examples = self._examples(step)
        return StepShare(
            micro_batches=[
                collate([self.split.row(example) for example in members])
                for members in self._members(examples)
            ],
            num_labels=int(self.split.num_labels[examples].sum()),
            lengths=torch.from_numpy(self.split.lengths[examples]),
        )

    def members(self, step: int) -> list[list[int]]:
        """Return the examples of each of this rank's micro-batches, by their place in the split."""
        return self._members(self._examples(step))

    def _members(self, examples: NDArray[np.int64]) -> list[list[int]]:
        lengths = self.split.lengths[examples]
        shares = assign(lengths, self.world_size, self.max_tokens, self.max_examples)
        return [[int(examples[position]) for position in part] for part in shares[self.rank]]

    def _examples(self, step: int) -> NDArray[np.int64]:
        return examples_of_step(
            step,
            num_examples=len(self.split),
            global_batch_size=self.global_batch_size,
            seed=self.seed,
            fixed_order=self.fixed_order,
        )


class EvaluationDataset(Dataset[MicroBatch]):
    """This rank's micro-batches of one pass over a split."""

    def __init__(
        self,
        split: PreparedSplit,
        *,
        rank: int,
        world_size: int,
        max_tokens: int,
        max_examples: int | None,
    ) -> None:
        self.split = split
        shares: Assignment = assign(split.lengths, world_size, max_tokens, max_examples)
        self.members = shares[rank]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> MicroBatch:
        return collate([self.split.row(position) for position in self.members[index]])


Item = TypeVar("Item")


def make_loader(
    dataset: Dataset[Item], *, num_workers: int, pin_memory: bool, first: int = 0
) -> DataLoader[Item]:
    """A loader that hands items on as they are, in order from `first`, read ahead by workers."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=range(first, len(dataset)),  # type: ignore[arg-type]
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=leave_to_parent if num_workers else None,
        # Its own: making an iterator draws a seed, and would move the generator dropout draws from.
        generator=torch.Generator(),
    )
