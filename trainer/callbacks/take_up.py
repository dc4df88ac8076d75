"""Where an attempt begins: requests to stop now wait for all ranks, and an earlier one goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.interruption import defer

if TYPE_CHECKING:
    from trainer.resumable import ResumableTrainer


class TakeUpCallback(TrainerCallback):  # type: ignore[misc]
    """Defers requests to stop once the model is set up, and restores the others. Goes first."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        defer()
        self.trainer.take_up()
