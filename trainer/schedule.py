"""How long a run is, when it evaluates and saves, and how its learning rate moves. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.config import Config, TrainingConfig
from trainer.data.batching import epochs_seen, num_steps
from trainer.errors import ConfigError


@dataclass(frozen=True)
class BatchPlan:
    """The batch arithmetic of a run, derived once from config, data and hardware."""

    global_batch_size: int  # examples per optimizer step, on all devices together
    num_steps: int
    warmup_steps: int
    max_tokens: int  # of one training micro-batch
    max_evaluation_tokens: int  # of one evaluation micro-batch
    num_examples: int  # of the training split
    can_pack: bool = True  # several examples may share a row

    @property
    def max_examples(self) -> int | None:
        """Most examples in one micro-batch; None: as many as fit."""
        return None if self.can_pack else 1

    def epochs_at(self, step: int) -> float:
        return epochs_seen(step, self.num_examples, self.global_batch_size)

    def completes_epochs(self, step: int, every: int) -> bool:
        """Whether step number `step` (from 1) finishes an epoch that is a multiple of `every`."""
        seen, period = step * self.global_batch_size, self.num_examples * every
        return seen // period > (seen - self.global_batch_size) // period

    def line(self, world_size: int) -> str:
        """One line for a person."""
        return (
            f"{self.num_steps} steps of {self.global_batch_size} examples "
            f"({self.epochs_at(self.num_steps):.2f} epochs of {self.num_examples}), "
            f"{world_size} process(es), at most {self.max_tokens} tokens in a micro-batch, "
            f"warm-up {self.warmup_steps} steps"
            + (" (the whole run: it never reaches its peak rate)" if self.is_all_warm_up else "")
        )

    @property
    def is_all_warm_up(self) -> bool:
        return self.num_steps > 1 and self.warmup_steps >= self.num_steps


def global_batch_size(training: TrainingConfig, world_size: int) -> int:
    """Examples per optimizer step; the pair counts per device, so the world size enters.

    Raises: ConfigError when neither form is set (`load_config` fills one in).
    """
    if training.global_batch_size is not None:
        return training.global_batch_size
    if training.batch_size is None or training.gradient_accumulation_steps is None:
        raise ConfigError(
            "the batch size is not set",
            rule="training.global_batch_size, or batch_size with gradient_accumulation_steps",
            fix="set training.global_batch_size",
        )
    return training.batch_size * training.gradient_accumulation_steps * world_size


def make_batch_plan(
    config: Config,
    *,
    num_examples: int,
    longest_tokens: int,
    world_size: int,
) -> BatchPlan:
    """Join config, data and hardware.

    Raises: ConfigError when an example does not fit the micro-batch that was asked for.
    """
    training = config.training
    size = global_batch_size(training, world_size)
    steps = training.max_steps or num_steps(num_examples, training.epochs or 1, size)
    limit = config.data.max_length
    max_tokens = training.max_tokens_per_device or (training.batch_size or 1) * limit
    if longest_tokens > max_tokens:
        raise ConfigError(
            f"an example of {longest_tokens} tokens does not fit a micro-batch of {max_tokens}",
            rule="training.max_tokens_per_device is at least the longest example",
            fix=f"set it to {longest_tokens} or more, or data.max_length to {max_tokens}",
        )
    return BatchPlan(
        global_batch_size=size,
        num_steps=steps,
        warmup_steps=_warmup_steps(training, steps),
        max_tokens=max_tokens,
        max_evaluation_tokens=max_tokens
        if config.evaluation.batch_size is None
        else config.evaluation.batch_size * limit,
        num_examples=num_examples,
    )


def with_fixed_batch(config: Config, plan: BatchPlan) -> Config:
    """Return the config with the batch as a number of examples, whatever the ranks of next time."""
    training = config.training
    if training.global_batch_size is not None:
        return config
    fixed = {
        "global_batch_size": plan.global_batch_size,
        "batch_size": None,
        "gradient_accumulation_steps": None,
        "max_tokens_per_device": plan.max_tokens,
    }
    return config.model_copy(update={"training": training.model_copy(update=fixed)})


def _warmup_steps(training: TrainingConfig, steps: int) -> int:
    if training.warmup_steps is not None:
        return training.warmup_steps
    # Rounded down: transformers' warm-up begins at rate 0, a step that a short run cannot spare.
    return int(round((training.warmup_ratio or 0.0) * steps, 6))


def scheduler_arguments(training: TrainingConfig) -> dict[str, Any]:
    """Name and settings of the schedule in transformers' terms."""
    if training.scheduler == "cosine" and training.min_lr_ratio > 0:
        return {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": training.min_lr_ratio},
        }
    if training.scheduler == "polynomial":
        # Its own default end, 1e-7, refuses a smaller peak.
        return {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 0.0}}
    return {"lr_scheduler_type": training.scheduler}


def is_due(plan: BatchPlan, step: int, every_steps: int | None, every_epochs: int | None) -> bool:
    """Whether something with these intervals happens after step number `step` (from 1)."""
    if every_steps is not None and step % every_steps == 0:
        return True
    return every_epochs is not None and plan.completes_epochs(step, every_epochs)
