"""The largest micro-batch first, for nothing: what does not fit ends in the first minute.

Its gradients are thrown away and random generators are put back, so the run is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.checkpoints.generators import generator_states, set_generators
from trainer.data.collate import MicroBatch, StepDataset, collate
from trainer.loss import summed_loss

if TYPE_CHECKING:
    from trainer.training import RankZeroTrainer

_MOST_EXAMPLES = 200_000
"""Looked at, beginning with the first step: splitting that many takes under a second."""


def try_longest(trainer: RankZeroTrainer, dataset: StepDataset) -> None:
    """Go forward and backward once. Raises what a step would when memory runs out.

    Ranks: each for itself. Not under DeepSpeed, whose buffers keep what a backward pass left.
    """
    if trainer.is_deepspeed_enabled or trainer.start.step >= len(dataset):
        return
    states = generator_states()
    model = trainer.model_wrapped
    model.train()
    micro_batch = longest(dataset, trainer.start.step).to(trainer.args.device)
    trainer.accelerator.gradient_state._set_sync_gradients(False)
    if trainer.noise is not None:
        trainer.noise.follow(micro_batch.position_ids)
    with trainer.accelerator.no_sync(model):
        trainer.accelerator.backward(summed_loss(model, micro_batch, trainer.loss_plan))
    model.zero_grad()
    set_generators(states.to_tensors())


def longest(dataset: StepDataset, first: int) -> MicroBatch:
    """Return the micro-batch of most tokens in the steps from `first` on."""
    most = max(1, _MOST_EXAMPLES // dataset.global_batch_size)
    lengths = dataset.split.lengths
    members = max(
        (
            members
            for step in range(first, min(len(dataset), first + most))
            for members in dataset.members(step)
        ),
        key=lambda members: int(lengths[members].sum()),
    )
    return collate([dataset.split.row(example) for example in members])
