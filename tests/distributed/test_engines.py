"""The four engines, started as the launcher starts them: same examples, same losses, one writer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.engines import EngineCommand, EngineName, Launch, make_engine_command, shell_line
from launcher.engines.rendezvous import free_local_rendezvous
from tests.commands import read_json, run, training_losses, write_config
from tests.deepspeed_files import write_deepspeed_config
from tests.tiny import make_model_folder

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed runs on Linux"),
]

ROOT = Path(__file__).parents[2]
WAYS: dict[str, tuple[EngineName, str | None, int]] = {  # engine, DeepSpeed config, nodes
    "torchrun": ("torchrun", None, 1),
    "accelerate": ("accelerate", None, 1),
    "deepspeed, zero2": ("deepspeed", "zero2", 1),
    "deepspeed, zero3": ("deepspeed", "zero3", 1),
    "deepspeed, zero3_offload": ("deepspeed", "zero3_offload", 1),
    "torchrun, two nodes": ("torchrun", "zero3_offload_optimizer", 2),
    "accelerate, two nodes": ("accelerate", "zero1", 2),
    "deepspeed, two nodes": ("deepspeed", "zero2", 2),
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


def start(command: EngineCommand) -> subprocess.Popen[str]:
    """Start a command by its shell line, from a folder with a space in its name."""
    for path, text in command.files.items():
        path.write_text(text, encoding="utf-8")
    return subprocess.Popen(
        ["/bin/sh", "-c", shell_line(command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def commands(engine: EngineName, nodes: int, **settings: Any) -> list[EngineCommand]:
    """One command per node; two ranks in all."""
    needs_place = nodes > 1 or engine == "deepspeed"
    place = free_local_rendezvous() if needs_place else None
    made = []
    for node in range(nodes):
        folder = settings["resolved"].parent / f"node {node}"
        folder.mkdir()
        launch = Launch(
            python=sys.executable,
            folder=folder,
            processes=2 // nodes,
            precision="fp32",
            shutdown_timeout_seconds=60,
            nodes=nodes,
            node_rank=node,
            rendezvous=place,
            device="cpu",
            **settings,
        )
        made.append(make_engine_command(engine, launch))
    return made


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_follow_one(way: str, base: Path, one_process: Path, tmp_path: Path) -> None:
    engine, zero, nodes = WAYS[way]
    folder = tmp_path / "a run"
    folder.mkdir()
    deepspeed_config = write_deepspeed_config(folder / "ds.json", zero) if zero else None
    merges = way == "deepspeed, zero3"
    config = write_config(
        folder / "run.json",
        base,
        folder / "out",
        training={
            "deepspeed_config": deepspeed_config and str(deepspeed_config),
            "max_tokens_per_device": 512,
        },
        merge={"after_training": merges},
    )
    settings = {"resolved": config, "deepspeed_config": deepspeed_config}
    to_start = commands(engine, nodes, **settings)
    started = [start(command) for command in to_start]
    printed = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0] * nodes, printed[0][-3000:]
    assert "2 process(es)" in printed[0]
    assert training_losses(folder / "out") == pytest.approx(training_losses(one_process), rel=1e-4)
    got, expected = (read_json(path / "summary.json") for path in (folder / "out", one_process))
    assert got["after"] == pytest.approx(expected["after"], rel=1e-4)
    # After ZeRO-3, DeepSpeed's hooks must not reach the merge's model loading.
    assert (folder / "out" / "merged" / "model.safetensors").is_file() == merges
    assert got["tokens"] == expected["tokens"]  # the same examples, none seen twice
    # DeepSpeed gives 66 MiB of shared memory to each rank, and forgets them.
    ports = re.findall(r"--master_port=(\d+)", " ".join(map(shell_line, to_start)))
    assert (len(ports) == nodes) == (engine == "deepspeed")
    assert [left for port in ports for left in Path("/dev/shm").glob(f"deepspeed*_{port}_*")] == []
