"""The same run started by hand in every way: same examples, same losses, one writer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.commands import read_json, run, training_losses, write_config
from tests.tiny import make_model_folder

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed runs on Linux"),
]

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
WAYS = {
    "torchrun": (TORCHRUN, None),
    "accelerate": (ACCELERATE, None),
    "zero2": (TORCHRUN, "zero2"),
    "zero3": (TORCHRUN, "zero3"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def one_process(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python")
    config = write_config(folder / "run.json", base, folder / "out")
    finished = run("-m", "trainer", "--config", config)
    assert finished.returncode == 0, finished.stderr
    return folder / "out"


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_follow_one(way: str, base: Path, one_process: Path, tmp_path: Path) -> None:
    launcher, deepspeed_config = WAYS[way]
    config = write_config(
        tmp_path / "run.json",
        base,
        tmp_path / "out",
        training={"deepspeed_config": deepspeed_config, "max_tokens_per_device": 512},
        merge={"after_training": way == "zero3"},
    )
    finished = run(*launcher, "-m", "trainer", "--config", config)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert training_losses(tmp_path / "out") == pytest.approx(
        training_losses(one_process), rel=1e-4
    )
    got, expected = (read_json(path / "summary.json") for path in (tmp_path / "out", one_process))
    assert got["after"] == pytest.approx(expected["after"], rel=1e-4)
    # After ZeRO-3, DeepSpeed's hooks must not reach the merge's model loading.
    assert (tmp_path / "out" / "merged" / "model.safetensors").is_file() == (way == "zero3")
    assert got["tokens"] == expected["tokens"]  # the same examples, none seen twice
