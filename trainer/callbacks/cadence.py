"""When a run evaluates and saves. Steps and epochs are both counted in global batches."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.config import Config
from trainer.schedule import BatchPlan, is_due


class CadenceCallback(TrainerCallback):  # type: ignore[misc]
    """Asks for evaluation and checkpoints; always for both at the last step."""

    def __init__(self, config: Config, plan: BatchPlan, *, has_validation: bool) -> None:
        self.config, self.plan, self.has_validation = config, plan, has_validation

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step = state.global_step
        is_last = step >= self.plan.num_steps
        # Trainer counts the whole run as one epoch; this is what the rest of the run reads.
        state.epoch = self.plan.epochs_at(step)
        evaluation, checkpoint = self.config.evaluation, self.config.checkpoint
        if self.has_validation and (
            is_last or is_due(self.plan, step, evaluation.every_steps, evaluation.every_epochs)
        ):
            control.should_evaluate = True
        if is_last or is_due(self.plan, step, checkpoint.every_steps, checkpoint.every_epochs):
            control.should_save = True
        if is_last:
            control.should_log = True
