"""Batch arithmetic, intervals, early stopping, learning rates: what a run does when."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainingArguments, get_scheduler

from trainer.callbacks.best_model import BestModelCallback, EarlyStoppingCallback
from trainer.callbacks.cadence import CadenceCallback
from trainer.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    TrainingConfig,
)
from trainer.errors import ConfigError
from trainer.run_directory import RunDirectory
from trainer.schedule import BatchPlan, make_batch_plan
from trainer.training_arguments import to_training_arguments


def make_config(training: dict[str, Any], **sections: Any) -> Config:
    return Config(
        model=ModelConfig(name="m"),
        data=DataConfig(train=["rows.jsonl"], max_length=256),
        training=TrainingConfig(**training),
        output_dir="runs/m",
        **sections,
    )


def plan_of(training: dict[str, Any], *, world_size: int = 1, num_examples: int = 720) -> BatchPlan:
    return make_batch_plan(
        make_config(training),
        num_examples=num_examples,
        longest_tokens=200,
        world_size=world_size,
    )


def test_a_global_batch_is_the_same_on_any_world_and_the_pair_counts_per_device() -> None:
    fixed = {"global_batch_size": 32, "epochs": 3.0}
    assert plan_of(fixed).global_batch_size == plan_of(fixed, world_size=8).global_batch_size == 32
    pair = {"batch_size": 4, "gradient_accumulation_steps": 8, "epochs": 3.0}
    assert plan_of(pair).global_batch_size == 32
    assert plan_of(pair, world_size=2).global_batch_size == 64
    assert plan_of(pair).num_steps == 68  # 3 x 720 / 32 = 67.5
    assert plan_of(pair).max_tokens == 4 * 256


def test_warm_up_by_steps_or_ratio() -> None:
    training = {"global_batch_size": 8, "max_steps": 100}
    assert plan_of({**training, "warmup_steps": 7}).warmup_steps == 7
    assert plan_of({**training, "warmup_ratio": 0.03}).warmup_steps == 3
    assert plan_of({**training, "warmup_ratio": 0.29}).warmup_steps == 29  # 28.999... in floats
    # A warm-up of one step would be a step at rate 0: a run of 10 steps has none.
    assert plan_of({**training, "max_steps": 10, "warmup_ratio": 0.03}).warmup_steps == 0
    too_long = plan_of({**training, "max_steps": 10, "warmup_steps": 10})
    assert "never reaches its peak rate" in too_long.line(1)


def test_a_micro_batch_must_hold_the_longest_example() -> None:
    with pytest.raises(ConfigError, match="200 tokens does not fit a micro-batch of 199"):
        plan_of({"global_batch_size": 8, "max_steps": 1, "max_tokens_per_device": 199})


@pytest.mark.parametrize("num_examples", [10, 64, 65, 100])
def test_every_epoch_ends_exactly_once(num_examples: int) -> None:
    plan = plan_of({"global_batch_size": 16, "epochs": 7.0}, num_examples=num_examples)
    ends = [step for step in range(1, plan.num_steps + 1) if plan.completes_epochs(step, 1)]
    if num_examples >= 16:
        assert ends == [math.ceil(epoch * num_examples / 16) for epoch in range(1, 8)]
    assert plan.completes_epochs(plan.num_steps, 1)


def cadence_at(config: Config, plan: BatchPlan, step: int, *, has_validation: bool = True) -> Any:
    state = SimpleNamespace(global_step=step, epoch=None)
    control = SimpleNamespace(should_evaluate=False, should_save=False, should_log=False)
    callback = CadenceCallback(config, plan, has_validation=has_validation)
    callback.on_step_end(None, state, control)
    return SimpleNamespace(**vars(control), epoch=state.epoch)


def test_cadence_follows_steps_epochs_and_the_last_step() -> None:
    config = make_config(
        {},
        evaluation=EvaluationConfig(every_steps=200),
        checkpoint=CheckpointConfig(every_steps=500, every_epochs=1),
    )
    plan = BatchPlan(8, 1001, 0, 256, 256, num_examples=720)  # an epoch is 90 steps
    evaluates = [step for step in range(1, 1002) if cadence_at(config, plan, step).should_evaluate]
    saves = [step for step in range(1, 1002) if cadence_at(config, plan, step).should_save]
    assert evaluates == [200, 400, 600, 800, 1000, 1001]
    assert saves == sorted({*range(90, 1001, 90), 500, 1000, 1001})
    assert cadence_at(config, plan, 45).epoch == 0.5
    assert not cadence_at(config, plan, 200, has_validation=False).should_evaluate


def evaluate_all(callback: Any, losses: list[float]) -> int | None:
    """The evaluation (from 1) at which the run stops."""
    control = SimpleNamespace(should_training_stop=False)
    for number, loss in enumerate(losses, 1):
        state = SimpleNamespace(global_step=number)
        callback.on_evaluate(None, state, control, {"eval_loss": loss})
        callback.on_evaluate(None, state, control, {"test_loss": 0.0})  # not validation
        if control.should_training_stop:
            return number
    return None


@pytest.mark.parametrize(
    ("patience", "threshold", "losses", "stops_at"),
    [
        (2, 0.0, [3, 2, 2.5, 2.1, 1.0], 4),
        (2, 0.0, [3, 2, 2.5, 1.9, 2.5, 2.5], 6),
        (1, 0.0, [1, 1], 2),
        (2, 0.5, [3, 2.6, 2.4, 2.0], None),  # 2.4 beats 3 by more than 0.5
        (2, 0.5, [3, 2.6, 2.6], 3),
        (None, 0.0, [1, 2, 3, 4], None),
    ],
)
def test_early_stopping(
    patience: int | None, threshold: float, losses: list[float], stops_at: int | None
) -> None:
    config = EvaluationConfig(early_stopping_patience=patience, early_stopping_threshold=threshold)
    assert evaluate_all(EarlyStoppingCallback(config), losses) == stops_at


def test_each_new_lowest_loss_is_saved() -> None:
    callback, saved = BestModelCallback(), []
    for step, loss in enumerate([0.1, 3, 2, 2.5, 2.0, 1.0, 1.5]):  # step 0 is the base model
        control = SimpleNamespace(should_save=False)
        callback.on_evaluate(None, SimpleNamespace(global_step=step), control, {"eval_loss": loss})
        if control.should_save:
            saved.append(callback.best_step)
    assert saved == [1, 2, 5]


def test_a_stop_that_was_due_is_due_after_going_on_too() -> None:
    config = EvaluationConfig(early_stopping_patience=2)
    first = EarlyStoppingCallback(config)
    assert evaluate_all(first, [3, 4, 5]) == 3
    second = EarlyStoppingCallback(config)
    second.load_state_dict(first.state_dict())
    control = SimpleNamespace(should_training_stop=False)
    second.on_train_begin(None, None, control)
    assert control.should_training_stop


def rates(training: dict[str, Any], steps: int) -> list[float]:
    """Learning rates as transformers makes them from our arguments."""
    config = make_config({"max_steps": steps, **training})
    plan = make_batch_plan(
        config.model_copy(
            update={"training": config.training.model_copy(update={"global_batch_size": 8})}
        ),
        num_examples=80,
        longest_tokens=1,
        world_size=1,
    )
    arguments = TrainingArguments(
        **to_training_arguments(
            config, plan, precision="fp32", device_type="cpu", directory=RunDirectory(Path("r"))
        )
        | {"report_to": "none"}
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=arguments.learning_rate)
    scheduler = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )
    seen = []
    for _ in range(steps + 1):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_with_a_floor_ends_at_a_tenth_of_the_peak() -> None:
    seen = rates({"learning_rate": 1.0, "min_lr_ratio": 0.1, "warmup_steps": 10}, 100)
    assert max(seen) == pytest.approx(1.0)
    assert seen[10] == pytest.approx(1.0)
    assert seen[55] == pytest.approx(0.55)
    assert seen[100] == pytest.approx(0.1)


def test_a_polynomial_schedule_takes_any_peak() -> None:
    assert rates({"learning_rate": 1e-8, "scheduler": "polynomial", "warmup_steps": 0}, 4)[4] == 0


@pytest.mark.parametrize(
    ("scheduler", "middle", "end"),
    [
        ("cosine", 0.5, 0.0),
        ("linear", 0.5, 0.0),
        ("constant", 1.0, 1.0),
        ("constant_with_warmup", 1.0, 1.0),
        ("polynomial", 0.5, 0.0),
    ],
)
def test_schedules(scheduler: str, middle: float, end: float) -> None:
    seen = rates({"learning_rate": 1.0, "scheduler": scheduler, "warmup_steps": 0}, 100)
    assert seen[50] == pytest.approx(middle, abs=1e-6)
    assert seen[100] == pytest.approx(end, abs=1e-6)
