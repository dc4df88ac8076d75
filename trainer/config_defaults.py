"""Defaults that follow from other settings. PURE; those that need hardware are the planner's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trainer.config_data import DataConfig
from trainer.config_schema import (
    CheckpointConfig,
    Config,
    EvaluationConfig,
    TrainingConfig,
)

EPOCHS = 3.0
WARMUP_RATIO = 0.03
GLOBAL_BATCH_SIZE = 16
CHECKPOINT_STEPS = 100

# Settings that replace each other: the command line's choice puts the file's aside.
ALTERNATIVES: tuple[tuple[frozenset[str], frozenset[str]], ...] = tuple(
    (frozenset(first), frozenset(second))
    for first, second in (
        ({"training.epochs"}, {"training.max_steps"}),
        ({"training.warmup_steps"}, {"training.warmup_ratio"}),
        (
            {"training.global_batch_size"},
            {"training.batch_size", "training.gradient_accumulation_steps"},
        ),
        ({"evaluation.every_steps"}, {"evaluation.every_epochs"}),
    )
)


def put_aside(chosen: Iterable[str]) -> frozenset[str]:
    """Return the settings that a choice of others replaces."""
    names = frozenset(chosen)
    aside: frozenset[str] = frozenset()
    for first, second in ALTERNATIVES:
        if names & first:
            aside |= second
        if names & second:
            aside |= first
    return aside - names


def has_validation(data: DataConfig) -> bool:
    """Tell whether there will be a validation split."""
    return bool(data.validation) or data.validation_size > 0


def fill_derived(config: Config) -> Config:
    """Return the config with every default filled in that needs no hardware to know."""
    training = _fill_training(config.training)
    evaluation = _fill_evaluation(config.evaluation, config.data, training)
    checkpoint = _fill_checkpoint(config.checkpoint, evaluation)
    return config.model_copy(
        update={"training": training, "evaluation": evaluation, "checkpoint": checkpoint}
    )


def _fill_training(training: TrainingConfig) -> TrainingConfig:
    filled: dict[str, Any] = {}
    if training.epochs is None and training.max_steps is None:
        filled["epochs"] = EPOCHS
    if training.warmup_steps is None and training.warmup_ratio is None:
        filled["warmup_ratio"] = 0.0 if training.scheduler == "constant" else WARMUP_RATIO
    if training.batch_size is None and training.gradient_accumulation_steps is None:
        if training.global_batch_size is None:
            filled["global_batch_size"] = GLOBAL_BATCH_SIZE
    elif training.global_batch_size is None:
        filled["batch_size"] = training.batch_size or 1
        filled["gradient_accumulation_steps"] = training.gradient_accumulation_steps or 1
    return training.model_copy(update=filled)


def _fill_evaluation(
    evaluation: EvaluationConfig, data: DataConfig, training: TrainingConfig
) -> EvaluationConfig:
    if evaluation.every_steps or evaluation.every_epochs or not has_validation(data):
        return evaluation
    return evaluation.model_copy(update={"every_steps": training.logging_steps})


def _fill_checkpoint(
    checkpoint: CheckpointConfig, evaluation: EvaluationConfig
) -> CheckpointConfig:
    if checkpoint.every_steps or checkpoint.every_epochs:
        return checkpoint
    steps = 2 * evaluation.every_steps if evaluation.every_steps else CHECKPOINT_STEPS
    return checkpoint.model_copy(update={"every_steps": steps})
