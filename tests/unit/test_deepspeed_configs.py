"""DeepSpeed configs: DeepSpeed takes the shipped ones, and any other is compared with the run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from trainer.config import TrainingConfig
from trainer.deepspeed_config import (
    check_deepspeed_config,
    completed,
    config_contradictions,
    load_deepspeed_config,
    with_nvme,
)
from trainer.errors import ConfigError
from trainer.shipped import shipped_folder

SHIPPED = sorted(shipped_folder("deepspeed_configs").glob("*.json"))
BY_NAME = {path.stem: path for path in SHIPPED}
CPU = {"device": "cpu"}


def shipped(name: str) -> dict[str, Any]:
    settings = load_deepspeed_config(BY_NAME[name])
    if "nvme" in name:
        settings = with_nvme(settings, Path("/nvme/run"), largest_parameter=1000, world_size=3)
    return settings


def fill_as_transformers_does(settings: dict[str, Any]) -> dict[str, Any]:
    values = {
        "train_batch_size": 1,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
    }
    for key, value in values.items():
        assert settings[key] == "auto"
        settings[key] = value
    for precision, enabled in (("bf16", True), ("fp16", False)):
        assert settings[precision] == {"enabled": "auto"}
        settings[precision] = {"enabled": enabled}
    return settings


def test_the_planners_ladder_is_shipped() -> None:
    assert set(BY_NAME) == {
        "zero1",
        "zero2",
        "zero3",
        "zero3_offload_optimizer",
        "zero3_offload",
        "zero3_nvme",
    }


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
@pytest.mark.parametrize("name", BY_NAME)
def test_deepspeed_takes_every_shipped_config(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    given = shipped(name)
    read = DeepSpeedConfig(fill_as_transformers_does(completed(given)))
    zero, written = read.zero_config, given["zero_optimization"]
    aliases = {field.alias or key: key for key, field in DeepSpeedZeroConfig.model_fields.items()}
    for key, value in written.items():  # each one arrived, under the name DeepSpeed reads
        arrived = getattr(zero, aliases[key])
        if isinstance(value, dict):
            assert arrived.device == value["device"]
            assert str(arrived.nvme_path) == value.get("nvme_path", "None")
        else:
            assert arrived == value
    assert read.grad_accum_dtype == "fp32"
    assert read.train_batch_size == 1


@pytest.mark.parametrize("name", BY_NAME)
def test_shipped_configs_contradict_no_run(name: str) -> None:
    for precision in ("auto", "bf16", "fp16", "fp32"):
        training = TrainingConfig(precision=precision, max_grad_norm=0.3)
        assert config_contradictions(completed(shipped(name)), training) == []


@pytest.mark.parametrize("name", BY_NAME)
def test_sizes_that_decide_memory_are_written_out(name: str) -> None:
    zero = shipped(name)["zero_optimization"]
    sizes = {"reduce_bucket_size"}
    if zero["stage"] == 3:
        sizes |= {
            "sub_group_size",
            "stage3_prefetch_bucket_size",
            "stage3_param_persistence_threshold",
            "stage3_max_live_parameters",
            "stage3_max_reuse_distance",
        }
    assert all(isinstance(zero[size], int) for size in sizes)


def test_nvme_buffers_hold_the_largest_partition_and_every_state() -> None:
    zero = shipped("zero3_nvme")["zero_optimization"]
    assert zero["offload_param"]["nvme_path"] == "/nvme/run"
    assert zero["offload_param"]["buffer_size"] == 334  # 1000 elements over 3 ranks
    assert zero["offload_optimizer"]["buffer_count"] >= 4  # master, gradient, two moments
    assert (
        load_deepspeed_config(BY_NAME["zero3_nvme"])["zero_optimization"]["offload_param"][
            "nvme_path"
        ]
        is None
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"train_batch_size": 32}, "`train_batch_size` is 32"),
        ({"train_micro_batch_size_per_gpu": 4}, "`train_micro_batch_size_per_gpu` is 4"),
        ({"gradient_accumulation_steps": 8}, "`gradient_accumulation_steps` is 8"),
        ({"gradient_clipping": 0.5}, "training.max_grad_norm is 1.0"),
        ({"optimizer": {"type": "AdamW"}}, "`optimizer` would overrule training.optimizer"),
        ({"scheduler": {"type": "WarmupLR"}}, "`scheduler` would overrule training.scheduler"),
        ({"elasticity": {"enabled": True}}, "`elasticity`"),
        ({"bf16": {"enabled": False}}, "`bf16.enabled` is false, but training.precision is bf16"),
        ({"fp16": {"enabled": True}}, "`fp16.enabled` is true, but training.precision is bf16"),
        ({"bf16": True}, "`bf16` is true"),
        ({"zero_optimization": True}, "`zero_optimization` is true"),
        ({"zero_optimization": {"stage": 4}}, "stage` is 4"),
        ({"zero_optimization": {"stage": 2, "offload_param": CPU}}, "needs stage 3"),
        ({"zero_optimization": {"stage": 0, "offload_optimizer": CPU}}, "needs stage 1"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
            "nvme with stage 2",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "nvme without `nvme_path`",
        ),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "disk"}}}, '"disk"'),
        (
            {
                "zero_optimization": {"stage": 3, "offload_optimizer": CPU},
                "zero_force_ds_cpu_optimizer": True,
            },
            "`zero_force_ds_cpu_optimizer` is true",
        ),
    ],
)
def test_a_contradiction_names_key_value_and_remedy(settings: dict[str, Any], named: str) -> None:
    problems = config_contradictions(settings, TrainingConfig(precision="bf16"))
    assert any(named in problem for problem in problems), problems
    assert all("; " in problem for problem in problems)  # what is wrong; what to do


def test_int8_weights_are_not_partitioned() -> None:
    stage_3 = {"zero_optimization": {"stage": 3}}
    (problem,) = config_contradictions(stage_3, TrainingConfig(), quantization="int8")
    assert "model.quantization nf4" in problem
    assert config_contradictions(stage_3, TrainingConfig(), quantization="nf4") == []


def test_what_the_run_says_too_is_no_contradiction() -> None:
    same = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
        "optimizer": None,
        "elasticity": {"enabled": False},
        "zero_optimization": {"stage": 2, "offload_param": {"device": "none"}},
    }
    assert config_contradictions(same, TrainingConfig(precision="bf16")) == []


def test_every_contradiction_is_reported_at_once_with_its_file(tmp_path: Path) -> None:
    settings = {"train_batch_size": 32, "optimizer": {"type": "Adam"}}
    with pytest.raises(ConfigError) as caught:
        check_deepspeed_config(tmp_path / "mine.json", settings, TrainingConfig())
    assert "mine.json: 2 problems" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "line 1 column 2"),
        ("[1]", r"holds \[1\]"),
        ('{"fp16": {}, "fp16": {}}', "fp16 is given twice"),
        (None, "cannot be read"),
    ],
)
def test_an_unreadable_file_is_named(text: str | None, named: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=named) as caught:
        load_deepspeed_config(path)
    assert "mine.json" in str(caught.value)
    assert caught.value.fix


def test_what_is_missing_is_completed_without_touching_the_users() -> None:
    users = {"zero_optimization": {"stage": 3, "offload_optimizer": CPU}, "bf16": {}}
    complete = completed(users)
    assert complete["train_batch_size"] == complete["gradient_clipping"] == "auto"
    assert complete["bf16"] == complete["fp16"] == {"enabled": "auto"}
    assert complete["zero_force_ds_cpu_optimizer"] is False
    assert users["bf16"] == {}
    assert "train_batch_size" not in users
    json.dumps(complete)
