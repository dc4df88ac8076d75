"""The largest micro-batch goes first, and the run is none the wiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tests.one_step import make_trainer
from tests.tiny import make_model_folder
from trainer import training
from trainer.longest_batch import longest
from trainer.training import RankZeroTrainer
from trainer.world import World

TOKENS = 60


@pytest.fixture
def trainer(tmp_path: Path) -> RankZeroTrainer:
    model = AutoModelForCausalLM.from_pretrained(make_model_folder(tmp_path / "model"))
    return make_trainer(model, tmp_path / "run", max_tokens=TOKENS, world=World())


def trained(trainer: RankZeroTrainer) -> list[torch.Tensor]:
    torch.manual_seed(3)
    trainer.train()
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def test_the_largest_micro_batch_is_tried_and_leaves_no_trace(
    trainer: RankZeroTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = trainer._train_dataset()
    sizes = [
        micro_batch.input_ids.shape[1]
        for step in range(len(dataset))
        for micro_batch in dataset[step]["micro_batches"]
    ]
    assert len(set(sizes)) > 2
    assert longest(dataset, 0).input_ids.shape[1] == max(sizes)
    with_it = trained(trainer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    other = make_trainer(model, tmp_path / "other", max_tokens=TOKENS, world=World())
    monkeypatch.setattr(training, "try_longest", lambda *_: None)
    without = trained(other)
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))


def test_memory_that_runs_out_does_so_before_the_first_step(
    trainer: RankZeroTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = longest(trainer._train_dataset(), 0).input_ids.shape[1]

    def too_large(_: Any, micro_batch: Any, __: Any) -> torch.Tensor:
        assert micro_batch.input_ids.shape[1] == size
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("trainer.longest_batch.summed_loss", too_large)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    assert trainer.state.global_step == 0


class _Stopped(TrainerCallback):
    """As a run that an earlier attempt has stopped early."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_training_stop = True


def test_nothing_is_tried_where_no_step_follows(
    trainer: RankZeroTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.longest_batch.summed_loss", lambda *_: pytest.fail("tried"))
    trainer.add_callback(_Stopped())
    trainer.train()
    assert trainer.state.global_step == 0
