"""The losses before the first step, so that a run can say what it changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from trainer.callbacks.stateful import StatefulCallback

if TYPE_CHECKING:
    from trainer.training import RankZeroTrainer


class BaselineCallback(StatefulCallback):
    """Evaluates validation and test splits when training begins (the model is placed by then)."""

    def __init__(self, trainer: RankZeroTrainer) -> None:
        self.trainer = trainer
        self.losses: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self.losses = self.trainer.held_out_losses()

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = state["losses"]
