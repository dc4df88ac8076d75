"""Training through ranks 4, 8, 16: a larger adapter starts as exactly the smaller one.

The adapter has its last rank from the beginning. Columns of B beyond the rank at hand are zero and
get no gradient, so what they would add is nothing, and the rows of A that face them learn nothing
either: the steps are those of the smaller adapter. A larger rank opens more columns. Its scale,
alpha / r, is the same throughout (alpha = 2 x rank stays 2), so no output changes when it does.
Nothing depends on an attempt's history: the rank follows from the step alone.

Letters: R the last rank, r the rank at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftConfig
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.checkpoints import capture
from trainer.checkpoints.adapter import adapter_names
from trainer.checkpoints.moments import trained_parameters
from trainer.run_directory import RunDirectory
from trainer.weights import replace_folder

if TYPE_CHECKING:
    from trainer.training import RankZeroTrainer

_A_NAMES, _B_NAMES = ("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B")
_SECOND_MOMENT = "exp_avg_sq"


def stage_ends(ranks: Sequence[int], num_steps: int) -> list[int]:
    """Return the step each rank ends with: equal parts, the last one takes the rest. PURE."""
    return [num_steps * (index + 1) // len(ranks) for index in range(len(ranks))]


def rank_at(step: int, ranks: Sequence[int], num_steps: int) -> int:
    """Return the rank that trains in the step after `step` completed ones. PURE."""
    ends = stage_ends(ranks, num_steps)
    return next((rank for rank, end in zip(ranks, ends, strict=True) if step < end), ranks[-1])


class ProgressiveRankCallback(TrainerCallback):  # type: ignore[misc]
    """Opens columns when their stage begins, and keeps each stage's adapter."""

    def __init__(self, trainer: RankZeroTrainer, ranks: Sequence[int], run: RunDirectory) -> None:
        self.trainer, self.ranks, self.run = trainer, ranks, run
        self.rank = ranks[0]
        self.num_steps = trainer.plan.num_steps
        self.ends = stage_ends(ranks, self.num_steps)
        self._columns = {
            name: parameter
            for name, parameter in trained_parameters(trainer.model).items()
            if _is_part(name, _B_NAMES)
        }
        for parameter in self._columns.values():
            parameter.register_hook(self._of_open_columns)  # type: ignore[no-untyped-call]

    def _of_open_columns(self, gradient: torch.Tensor) -> torch.Tensor:
        """Shapes: (out, R) -> (out, R)"""
        if self.rank == gradient.shape[1]:
            return gradient
        masked = gradient.clone()
        masked[:, self.rank :] = 0
        return masked

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step = state.global_step
        self.rank = rank_at(step, self.ranks, self.num_steps)
        if step in self.ends[:-1]:
            self._start_moments(self.ranks[self.ends.index(step)])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step in self.ends:
            self._keep(self.ranks[self.ends.index(state.global_step)])

    def _start_moments(self, before: int) -> None:
        """Give new columns the mean second moment of the old ones in their row.

        Adam counts steps per tensor: with a moment of zero it would take new columns for
        converged, and move them several times as far as the old ones. Ranks: collective.
        """
        zero = self.trainer.zero_optimizer
        for parameter in self._columns.values():
            if zero is not None:
                from deepspeed.utils import (
                    safe_get_full_optimizer_state,
                    safe_set_full_optimizer_state,
                )

                moment = safe_get_full_optimizer_state(parameter, _SECOND_MOMENT)
                opened = _opened(moment, before, self.rank)
                safe_set_full_optimizer_state(parameter, opened, _SECOND_MOMENT)
                continue
            kept = self.trainer.optimizer.state.get(parameter, {})
            if _SECOND_MOMENT in kept:
                kept[_SECOND_MOMENT].copy_(_opened(kept[_SECOND_MOMENT], before, self.rank))

    def _keep(self, rank: int) -> None:
        """Write the adapter at its own rank. Ranks: collective."""
        trainer = self.trainer
        snapshot = capture.capture_adapter(
            trainer, adapter_names(trainer.model), with_optimizer=False
        )
        if snapshot is None:
            return
        target = self.run.path / f"checkpoint_r{rank}"
        temporary = target.with_name(f".{target.name}.partial")
        temporary.mkdir(exist_ok=True)
        tensors = {name: _sliced(name, tensor, rank) for name, tensor in snapshot.adapter.items()}
        config = at_rank(snapshot.config, rank)
        capture.write_adapter(temporary, capture.AdapterSnapshot(config, tensors, None))
        capture.TokenizerFiles(trainer.processing_class).write(temporary)
        replace_folder(temporary, target)


def at_rank(config: PeftConfig, rank: int) -> PeftConfig:
    """Describe the adapter's first `rank` components, at the same scale. PURE."""
    assert isinstance(config, LoraConfig)
    smaller = deepcopy(config)
    share = rank / config.r
    smaller.r = rank
    smaller.lora_alpha = config.lora_alpha * (math.sqrt(share) if config.use_rslora else share)
    return smaller


def _opened(moment: torch.Tensor, before: int, rank: int) -> torch.Tensor:
    """Shapes: (out, R) -> (out, R)"""
    filled = moment.clone()
    filled[:, before:rank] = moment[:, :before].mean(dim=1, keepdim=True)
    return filled


def _sliced(name: str, tensor: torch.Tensor, rank: int) -> torch.Tensor:
    if _is_part(name, _A_NAMES):
        return tensor[:rank].contiguous()
    return tensor[:, :rank].contiguous() if _is_part(name, _B_NAMES) else tensor


def _is_part(name: str, parts: Sequence[str]) -> bool:
    return any(part in parts for part in name.split("."))
