"""Keeps the weights of the lowest validation loss, and stops when it no longer falls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.config import EvaluationConfig


class BestModelCallback(TrainerCallback):  # type: ignore[misc]
    """Calls `write_best` at each new lowest validation loss of the run.

    Every rank sees the same loss, so every rank decides alike; `write_best` may be collective.
    """

    def __init__(self, write_best: Callable[[], None]) -> None:
        self.write_best = write_best
        self.best_loss: float | None = None
        self.best_step = 0

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        loss = metrics.get("eval_loss")
        # Step 0 measures the base model, which is not a result of this run.
        if loss is None or state.global_step == 0:
            return
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step = loss, state.global_step
            self.write_best()


class EarlyStoppingCallback(TrainerCallback):  # type: ignore[misc]
    """Stops after `patience` evaluations in a row that improve by no more than the threshold."""

    def __init__(self, config: EvaluationConfig) -> None:
        self.patience = config.early_stopping_patience
        self.threshold = config.early_stopping_threshold
        self.best_loss: float | None = None
        self.num_without_improvement = 0

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        loss = metrics.get("eval_loss")
        if self.patience is None or loss is None or state.global_step == 0:
            return
        if self.best_loss is None or loss < self.best_loss - self.threshold:
            self.best_loss, self.num_without_improvement = loss, 0
            return
        self.num_without_improvement += 1
        if self.num_without_improvement >= self.patience:
            control.should_training_stop = True
