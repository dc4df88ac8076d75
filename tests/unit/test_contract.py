"""What may change between two attempts of a run, and what is refused in words that name it."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.commands import write_config
from trainer.checkpoints.contract import (
    Facts,
    check_contract,
    differences,
    make_contract,
    read_global_batch_size,
)
from trainer.config import load_config
from trainer.errors import ConfigError

FACTS = Facts(
    data_fingerprint="f" * 32,
    num_examples=208,
    chat_template="c" * 64,
    base_model="b" * 64,
    global_batch_size=8,
    num_steps=6,
    warmup_steps=0,
    versions={"torch": "2.13.0"},
)


def contract_of(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    overrides = [
        f"{name.replace('__', '.')}={json.dumps(value)}" for name, value in changes.items()
    ]
    path = write_config(tmp_path / "run.json", Path("/models/tiny"), tmp_path / "out")
    return make_contract(load_config(path, overrides), FACTS)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training__learning_rate": 1e-3}, "training.learning_rate: 0.01 then, 0.001 now"),
        ({"seed": 7}, "seed: 42 then, 7 now"),
        ({"lora__r": 4}, "lora.r: 16 then, 4 now"),
        ({"lora__target_modules": ["q_proj"]}, 'lora.target_modules: "all-linear" then'),
        ({"training__scheduler": "linear"}, 'training.scheduler: "cosine" then, "linear" now'),
        ({"training__optimizer": "sgd"}, 'training.optimizer: "adamw_torch" then, "sgd" now'),
    ],
)
def test_a_setting_that_changes_what_is_learned_is_named(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    found = differences(contract_of(tmp_path), contract_of(tmp_path, **changes))
    assert len(found) == 1
    assert told in found[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"model__quantization": "nf4"},
        {"training__precision": "bf16"},
        {"training__max_tokens_per_device": 4096},
        {"training__gradient_checkpointing": True},
        {"training__deepspeed_config": "zero3"},
        {"training__logging_steps": 3},
        {"evaluation__early_stopping_patience": 2},
        {"checkpoint__keep_last": 9},
        {"model__name": "/elsewhere/tiny"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_hardware_and_what_is_watched_may_change(changes: dict[str, Any], tmp_path: Path) -> None:
    assert differences(contract_of(tmp_path), contract_of(tmp_path, **changes)) == []


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "data_fingerprint",
            "0" * 32,
            "data: 208 training examples (ffffffff) then, 208 (00000000)",
        ),
        ("chat_template", "0" * 64, "chat template: cccccccc then, 00000000 now"),
        (
            "base_model",
            {"name": "other", "digest": "0" * 64},
            "the weights of tiny (bbbbbbbb) then",
        ),
        ("global_batch_size", 16, "training.global_batch_size: 8 then, 16 now"),
        ("num_steps", 9, "steps of the run (training.epochs or max_steps): 6 then, 9 now"),
    ],
)
def test_data_model_and_batch_are_named(key: str, value: Any, told: str, tmp_path: Path) -> None:
    then = contract_of(tmp_path)
    now = {**deepcopy(then), key: value}
    with pytest.raises(ConfigError) as refused:
        check_contract(then, now, tmp_path, allow_changes=False)
    assert told in str(refused.value)
    assert "checkpoint.allow_changes=true" in str(refused.value)
    assert any(told in line for line in check_contract(then, now, tmp_path, allow_changes=True))


def test_weights_that_are_not_here_are_not_compared(tmp_path: Path) -> None:
    then = contract_of(tmp_path)
    now = {**then, "base_model": {"name": "other", "digest": None}}
    assert differences(then, now) == []


def test_other_versions_are_told_and_allowed(tmp_path: Path) -> None:
    then = contract_of(tmp_path)
    now = {**then, "versions": {"torch": "2.14.0"}}
    told = check_contract(then, now, tmp_path, allow_changes=False)
    assert told == ["note: torch 2.13.0 then, 2.14.0 now"]


def test_the_global_batch_of_a_run_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "contract.json").write_text(json.dumps(contract_of(tmp_path)))
    assert read_global_batch_size(tmp_path) == 8
    (tmp_path / "contract.json").write_text('{"global_batch_size": ')
    assert read_global_batch_size(tmp_path) is None
    assert read_global_batch_size(tmp_path / "absent") is None
