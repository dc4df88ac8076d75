"""What trains (LoRA on 4 bits, all weights) under every ZeRO-3 placement, against one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import read_json, training_losses, write_config
from tests.deepspeed_files import write_deepspeed_config
from tests.tiny import make_model_folder
from tests.warm_ranks import train_warm

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed runs on Linux"),
]

RUNS: dict[str, dict[str, Any]] = {
    "qlora": {"model": {"quantization": "nf4"}},
    "full": {"lora": {"enabled": False}, "training": {"learning_rate": 1e-3}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


def configure(folder: Path, base: Path, kind: str, deepspeed_config: Path | None) -> Path:
    path = write_config(folder / "run.json", base, folder / "out")
    config = read_json(path)
    config["training"].update(max_steps=4, max_tokens_per_device=512)
    if deepspeed_config is not None:
        config["training"]["deepspeed_config"] = str(deepspeed_config)
    config["evaluation"] = {"every_steps": 4, "at_start": False}
    for section, values in RUNS[kind].items():
        # A setting that full fine-tuning would ignore is refused.
        kept = {} if section == "lora" else config[section]
        config[section] = {**kept, **values}
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=RUNS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def one_process(kind: str, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(kind)
    finished = train_warm(configure(folder, base, kind, None))
    assert finished.returncode == 0, finished.stderr
    return folder / "out"


@pytest.mark.parametrize("zero", ["zero3", "zero3_offload"])
def test_zero_3_trains_as_one_process_does(
    kind: str, zero: str, base: Path, one_process: Path, tmp_path: Path
) -> None:
    deepspeed_config = write_deepspeed_config(tmp_path / "ds.json", zero)
    config = configure(tmp_path, base, kind, deepspeed_config)
    finished = train_warm(config, ranks=2)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert training_losses(tmp_path / "out") == pytest.approx(
        training_losses(one_process), rel=1e-4
    )
    got, expected = (read_json(path / "summary.json") for path in (tmp_path / "out", one_process))
    assert got["after"] == pytest.approx(expected["after"], rel=1e-4)
    assert got["tokens"] == expected["tokens"]
