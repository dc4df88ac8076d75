"""A checkpoint back into a trainer that is set up, whatever it was saved by.

Ranks: collective. Rank 0 reads; the others are told.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from trainer.checkpoints import capture
from trainer.checkpoints.adapter import WEIGHTS, adapter_names, masters_of
from trainer.checkpoints.generators import seed_generators, set_generators
from trainer.checkpoints.moments import restore_optimizer, trained_parameters
from trainer.checkpoints.saver import SHARDED
from trainer.checkpoints.state import RunState
from trainer.checkpoints.tensors import SharedTensors
from trainer.checkpoints.zero import restore_zero
from trainer.errors import ConfigError
from trainer.weights import load_weights

if TYPE_CHECKING:
    from trainer.training import RankZeroTrainer

LOSS_SUM = "loss_sum"


def restore_weights(trainer: RankZeroTrainer, checkpoint: Path, *, is_sharded: bool) -> None:
    """Put the weights alone back, to measure or publish them."""
    if is_sharded and not trainer.config.lora.enabled:
        trainer.model_wrapped.load_checkpoint(
            str(checkpoint), tag=SHARDED, load_module_only=True, load_lr_scheduler_states=False
        )
        return
    load_weights(trainer, checkpoint)


def restore_training(trainer: RankZeroTrainer, checkpoint: Path, state: RunState) -> None:
    """Put weights, optimizer, schedule and gradient scaler where they were.

    Raises: ConfigError when it was saved in parts that another number of ranks cannot use.
    """
    if state.kind == "sharded":
        _load_sharded(trainer, checkpoint, state)
    elif not trainer.is_portable:
        raise ConfigError(
            f"{checkpoint} was saved by {state.engine}, and this run keeps its state in parts",
            rule="full fine-tuning moves between one process and DDP, or stays with its ZeRO stage",
            fix=f"go on with {state.engine}, as it was begun",
        )
    else:
        _load_portable(trainer, checkpoint)
    set_schedule(trainer.lr_scheduler, state.scheduler_steps)
    if state.loss_scale is not None:
        trainer.set_loss_scale(state.loss_scale)


def restore_ranks(trainer: RankZeroTrainer, checkpoint: Path, state: RunState) -> torch.Tensor:
    """Set this rank's random generators; return its part of the loss not yet logged."""
    shared = SharedTensors(checkpoint, capture.RANKS, trainer.host)
    ranks = capture.split_ranks(shared.all())
    world = trainer.world
    if len(ranks) == world.world_size:
        set_generators(ranks[world.rank])
        return ranks[world.rank][LOSS_SUM]
    seed_generators(trainer.config.seed, state.step, world.rank)
    # Ranks report the mean of their parts.
    return torch.stack([own[LOSS_SUM] for own in ranks]).mean()


def set_schedule(scheduler: Any, steps: int) -> None:
    """Move a schedule to where it was after `steps` steps. LambdaLR depends on nothing else."""
    assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
    scheduler.last_epoch, scheduler._step_count = steps, steps + 1
    rates = [
        base * rate_at(steps)
        for base, rate_at in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def _load_portable(trainer: RankZeroTrainer, checkpoint: Path) -> None:
    model = trainer.model
    moments = SharedTensors(checkpoint, capture.OPTIMIZER, trainer.host)
    if not isinstance(model, PeftModel):
        load_weights(trainer, checkpoint)
        restore_optimizer(model, trainer.optimizer, moments)
        return
    saved = SharedTensors(checkpoint, WEIGHTS, trainer.host)
    names = adapter_names(model)
    _require_same_shapes(checkpoint, saved, names, model)
    masters = masters_of(names, saved.all())
    if trainer.zero_optimizer is not None:
        restore_zero(model, trainer.zero_optimizer, masters, moments)
        return
    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            parameter.copy_(masters[name])
    restore_optimizer(model, trainer.optimizer, moments)


def _require_same_shapes(
    checkpoint: Path, saved: SharedTensors, names: dict[str, str], model: PeftModel
) -> None:
    parameters = trained_parameters(model)
    here = {
        key: tuple(getattr(parameters[name], "ds_shape", parameters[name].shape))
        for key, name in names.items()
    }
    there = {key: saved.shape(key) for key in saved.names()}
    differing = sorted(key for key in {*here, *there} if here.get(key) != there.get(key))
    if differing:
        key = differing[0]
        raise ConfigError(
            f"the adapter in {checkpoint} is not of this run's form: {key} is "
            f"{there.get(key, 'absent')} there and {here.get(key, 'absent')} here",
            rule="an adapter goes on with the layers and ranks it was made for",
            fix="set the section lora as it was, or begin anew with another output_dir",
        )


def _load_sharded(trainer: RankZeroTrainer, checkpoint: Path, state: RunState) -> None:
    here = (trainer.world.world_size, trainer.engine_name)
    if here != (state.world_size, state.engine):
        raise ConfigError(
            f"{checkpoint} holds the parts of {state.world_size} ranks of {state.engine}, "
            f"and this is {here[0]} of {here[1]}",
            rule="full fine-tuning under DeepSpeed saves in parts, one per rank",
            fix=f"go on with {state.world_size} processes and {state.engine}",
        )
    is_lora = trainer.config.lora.enabled
    trainer.model_wrapped.load_checkpoint(
        str(checkpoint),
        tag=SHARDED,
        load_module_strict=not is_lora,
        load_lr_scheduler_states=False,
    )
