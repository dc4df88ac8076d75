"""Answers of a model in training are the same, whoever holds its weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import write_config
from tests.deepspeed_files import write_deepspeed_config
from tests.tiny import make_model_folder
from tests.warm_ranks import train_warm

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed runs on Linux"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


def trained(folder: Path, base: Path, ranks: int, **training: Any) -> Path:
    config = write_config(
        folder / "run.json",
        base,
        folder / "out",
        training={"max_steps": 2, "precision": "fp32", **training},
        samples={"prompts": ["Hello", "What is a fever?"], "max_new_tokens": 8},
        safety={"enabled": True, "prompts": ["My chest hurts."], "max_new_tokens": 8},
    )
    finished = train_warm(config, ranks=ranks)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder / "out"


def answers(run_folder: Path) -> list[list[str]]:
    lines = (run_folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    checks = (run_folder / "safety.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        [one[key] for one in json.loads(line)["samples"] for key in ("greedy", "sampled")]
        for line in lines
    ] + [[one["answer"] for one in json.loads(line)["checks"]] for line in checks]


@pytest.fixture(scope="module")
def expected(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    of_one_process = answers(trained(tmp_path_factory.mktemp("one"), base, 1))
    assert len(of_one_process) == 4  # at steps 0 and 2, twice
    return of_one_process


@pytest.mark.parametrize("zero", [None, "zero2", "zero3"])
def test_two_ranks_answer_as_one_process_does(
    zero: str | None, base: Path, expected: list[list[str]], tmp_path: Path
) -> None:
    shared = (
        {}
        if zero is None
        else {"deepspeed_config": str(write_deepspeed_config(tmp_path / "ds.json", zero))}
    )
    got = answers(trained(tmp_path, base, 2, **shared))
    assert got[0] == expected[0]
    assert got == expected
