"""One step is the same however it is cut: the heart of hardware invariance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.one_step import MemorySplit, make_trainer, reference_step, trainer_step
from tests.tiny import ARCHITECTURES, make_model_folder
from trainer.callbacks.best_model import BestModelCallback
from trainer.errors import TrainingFailed
from trainer.world import World

ALL_TOKENS = int(MemorySplit().lengths.sum())
# Micro-batch sizes that cut the step into 1, 2 and 8 micro-batches.
CUTS = {1: ALL_TOKENS, 2: -(-ALL_TOKENS // 2) + 4, 8: int(MemorySplit().lengths.max())}


def assert_same_gradients(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, reference in expected.items():
        scale = reference.abs().max()
        torch.testing.assert_close(got[name], reference, rtol=1e-4, atol=float(1e-5 * scale))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_step_equals_each_example_alone(architecture: str, tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model", architecture)
    reference_model = AutoModelForCausalLM.from_pretrained(folder)
    expected_loss, expected = reference_step(reference_model)
    assert len(expected) > 10
    cuts = [(tokens, True) for tokens in CUTS.values()] + [(ALL_TOKENS, False)]
    seen_micro_batches = []
    for max_tokens, can_pack in cuts:
        model = AutoModelForCausalLM.from_pretrained(folder)
        loss, gradients, num_micro_batches = trainer_step(
            model, tmp_path / "run", max_tokens=max_tokens, can_pack=can_pack
        )
        seen_micro_batches.append(num_micro_batches)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert_same_gradients(gradients, expected)
    assert seen_micro_batches[:2] == [1, 2]
    assert seen_micro_batches[2] > 2
    assert seen_micro_batches[3] == 8  # one example at a time


def test_a_rank_without_examples_takes_part_with_zero_gradients(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    world = World(rank=9, world_size=10, local_rank=9)
    trainer = make_trainer(model, tmp_path / "run", max_tokens=ALL_TOKENS, world=world)
    share = next(iter(trainer.get_train_dataloader()))
    assert [len(micro_batch.targets) for micro_batch in share["micro_batches"]] == [0]
    trainer.accelerator.prepare(model)
    loss = trainer.training_step(model, share)
    assert float(loss) == 0
    assert all(float(p.grad.abs().max()) == 0 for p in model.parameters() if p.grad is not None)


def test_evaluation_is_the_mean_over_labelled_tokens(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model")
    expected, _ = reference_step(AutoModelForCausalLM.from_pretrained(folder))
    for max_tokens in CUTS.values():
        model = AutoModelForCausalLM.from_pretrained(folder)
        trainer = make_trainer(model, tmp_path / "run", max_tokens=max_tokens, world=World())
        trainer.prepare_for_evaluation()
        metrics = trainer.evaluate("train", metric_key_prefix="test")
        assert metrics["test_loss"] == pytest.approx(expected, rel=1e-5)
        assert metrics["test_labels"] == int(MemorySplit().num_labels.sum())


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_model_folder(tmp_path / "model"))
    trainer = make_trainer(model, tmp_path / "run", max_tokens=ALL_TOKENS, world=World())
    callback = BestModelCallback()
    trainer.add_callback(callback)
    trainer.state.global_step = 1
    trainer.prepare_for_evaluation()
    trainer.evaluate("validation")
    best = callback.best_loss
    assert best is not None
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingFailed, match="validation loss is nan at step 1"):
        trainer.evaluate("validation")
    assert callback.best_loss == best
