"""From the first step on, a request to stop waits for a safe place."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.interruption import defer


class DeferralCallback(TrainerCallback):  # type: ignore[misc]
    """Defers requests to stop once the model is set up, which may take minutes. Goes first."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        defer()
