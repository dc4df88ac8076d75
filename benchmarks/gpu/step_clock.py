"""The speed of a Trainer's loop, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.gpu.clock import Clock, peak, reset_peak

_FEWEST_STEPS = 2  # a median of one is none


class StepClock(TrainerCallback):  # type: ignore[misc]
    """Times a Trainer from the end of one step to the end of the next: all of it counts.

    `limit`: seconds of measured steps after which training stops.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        warm_up: int,
        limit: float,
        tokens_so_far: Callable[[int], int],
    ) -> None:
        self._clock, self._device = Clock(device), device
        self._warm_up, self._limit, self._tokens_so_far = warm_up, limit, tokens_so_far
        self._tokens: list[int] = []
        self._began = self._measured_from = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        reset_peak(self._device)
        self._began = time.perf_counter()
        self._clock.mark()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._clock.mark()
        self._tokens.append(self._tokens_so_far(state.global_step))
        done = state.global_step - self._warm_up
        if done == 0:
            self._measured_from = time.perf_counter()
        if done >= _FEWEST_STEPS and time.perf_counter() - self._measured_from > self._limit:
            control.should_training_stop = True

    def result(self) -> dict[str, Any]:
        """Every step's seconds and useful tokens, the warm-up apart, and the peak of memory."""
        seconds = self._clock.seconds()
        pairs = zip([0, *self._tokens], self._tokens, strict=False)
        tokens = [after - before for before, after in pairs]
        return {
            "warm_up_seconds": seconds[: self._warm_up],
            "seconds": seconds[self._warm_up :],
            "tokens": tokens[self._warm_up :],
            **peak(self._device),
        }
