"""Keeps the weights of the lowest validation loss, and stops when it no longer falls."""

from __future__ import annotations

from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from trainer.callbacks.stateful import StatefulCallback
from trainer.config import EvaluationConfig


class BestModelCallback(StatefulCallback):
    """Asks for a checkpoint at each new lowest validation loss of the run.

    Every rank sees the same loss, so every rank decides alike.
    """

    def __init__(self) -> None:
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
            control.should_save = True

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, "best_step": self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_loss, self.best_step = state["best_loss"], state["best_step"]


class EarlyStoppingCallback(StatefulCallback):
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
        self._stop_if_due(control)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stop_if_due(control)  # an earlier attempt may have come to the end

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_loss": self.best_loss,
            "num_without_improvement": self.num_without_improvement,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_loss = state["best_loss"]
        self.num_without_improvement = state["num_without_improvement"]

    def _stop_if_due(self, control: TrainerControl) -> None:
        if self.patience is not None and self.num_without_improvement >= self.patience:
            control.should_training_stop = True
