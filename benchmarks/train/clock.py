"""Callbacks of a Trainer: seconds of whole rounds, and the gradients of one step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class RoundClock(TrainerCallback):  # type: ignore[misc]
    """Lets a Trainer run one round of steps each time it is asked, and tells its seconds.

    A round lasts from the word to go to the end of its last step: data, forward, backward, clip
    and optimizer. `go` waits for the next word, and answers whether there is another round.
    """

    def __init__(
        self, steps_per_round: int, tell: Callable[[float], None], go: Callable[[], bool]
    ) -> None:
        self._steps, self._tell, self._go = steps_per_round, tell, go
        self._began = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._wait(control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % self._steps == 0:
            self._tell(time.perf_counter() - self._began)
            self._wait(control)

    def _wait(self, control: TrainerControl) -> None:
        control.should_training_stop = not self._go()
        self._began = time.perf_counter()


class StepWatch(TrainerCallback):  # type: ignore[misc]
    """Times a single step, and hands over its gradients before the optimizer has them.

    Clipping is put off, so that gradients are those of the loss.
    """

    def __init__(self, take: Callable[[Any], None] | None = None) -> None:
        self._take = take
        self._began = self.seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._take is not None:
            args.max_grad_norm = 0.0
        self._began = time.perf_counter()

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        if self._take is not None:
            self._take(model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds = time.perf_counter() - self._began
