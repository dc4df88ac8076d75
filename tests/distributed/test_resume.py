"""A run that goes on ends as the one that was never stopped: bit for bit, or moved elsewhere."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file

from launcher.engines.rendezvous import free_local_rendezvous
from tests.commands import EXAMPLE_DATA, read_json, run, training_losses, write_config
from tests.resuming import cut_at, logged, require_same_run
from tests.tiny import make_model_folder
from tests.warm_ranks import train_warm
from trainer.checkpoints.manifest import write_manifest

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed runs on Linux"),
]

NUM_STEPS = 8
# Engine -> what starts the ranks.
ENGINES: dict[str, tuple[str, ...]] = {
    "python": ("-m", "trainer"),
    "torchrun": (
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "trainer"),
    ),
    "accelerate": (
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--main_process_port", "0", "--mixed_precision", "no", "-m", "trainer"),
    ),
    "deepspeed": (
        *("-m", "deepspeed.launcher.runner", "--num_gpus", "2"),
        *("--master_port", free_local_rendezvous().rpartition(":")[2]),
        *("--module", "trainer"),
    ),
}
# Everything that could leave a trace of where a run was cut: dropout, curriculum order, packing
# (always on), epochs that end inside, evaluation, answers, checkpoints by epoch, a rank that grows,
# and an early stop.
EVENTFUL: dict[str, Any] = {
    "training": {"max_steps": 12, "precision": "fp32", "neftune_noise_alpha": 5.0},
    "lora": {"dropout": 0.1, "r": 8, "alpha": 16, "progressive_ranks": [2, 4, 8]},
    "samples": {"prompts": ["What is blood pressure?"], "max_new_tokens": 4},
    "safety": {"enabled": True, "prompts": ["My chest hurts."], "max_new_tokens": 4},
    "evaluation": {
        "every_steps": 2,
        "early_stopping_patience": 3,
        "early_stopping_threshold": 10.0,  # nothing is an improvement: it stops after step 8
    },
    "checkpoint": {"every_steps": 1, "every_epochs": 1, "keep_last": 100},
}
PLAIN: dict[str, Any] = {
    "training": {"max_steps": NUM_STEPS, "precision": "fp32", "max_tokens_per_device": 512},
    "evaluation": {"every_steps": 4, "at_start": False},
    "checkpoint": {"every_steps": 4},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


def configure(path: Path, base: Path, output: Path, **sections: dict[str, Any]) -> Path:
    """Write a config on 40 examples, 24 of them for training: three steps an epoch."""
    rows = path.parent / "rows.jsonl"
    if not rows.exists():
        lines = (EXAMPLE_DATA / "medical_qa.jsonl").read_text(encoding="utf-8").splitlines()
        rows.write_text("\n".join(lines[:40]) + "\n", encoding="utf-8")
    data = {"train": str(rows), "validation_size": 8, "test_size": 8}
    return write_config(
        path, base, output, **{**sections, "data": {**data, **sections.get("data", {})}}
    )


def start(engine: str, config: Path) -> None:
    """Train by the engine's own command."""
    finished = run(*ENGINES[engine], "--config", config, DS_ACCELERATOR="cpu")
    assert finished.returncode == 0, finished.stderr[-3000:]


def train(config: Path, ranks: int = 1) -> str:
    """Train on so many ranks, whoever started them; return what they said."""
    finished = train_warm(config, ranks=ranks)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stderr


def with_zero(sections: dict[str, Any], zero: str | None) -> dict[str, Any]:
    if zero is None:
        return sections
    return {**sections, "training": {**sections["training"], "deepspeed_config": zero}}


@pytest.fixture(
    scope="module",
    params=[(1, None), (2, "zero2"), (2, "zero3")],
    ids=["one process", "2 ranks ZeRO-2", "2 ranks ZeRO-3"],
)
def eventful(
    request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, dict[str, Any], Path]:
    ranks, zero = request.param
    folder = tmp_path_factory.mktemp("straight")
    sections = with_zero({**EVENTFUL, "data": {"order": "length"}}, zero)
    config = configure(folder / "run.json", base, folder / "out", **sections)
    if ranks == 1:
        start("python", config)
    else:
        train(config, ranks)
    return ranks, sections, folder


@pytest.mark.parametrize("step", [1, 6, 8], ids=lambda step: f"after step {step}")
def test_a_run_that_goes_on_ends_bit_for_bit_the_same(
    eventful: tuple[int, dict[str, Any], Path], base: Path, step: int
) -> None:
    ranks, sections, folder = eventful
    straight = folder / "out"
    assert read_json(straight / "summary.json")["steps"] == 8, "it was to stop early"
    resumed = cut_at(straight, step, folder / f"cut-{step}")
    config = configure(folder / f"cut-{step}.json", base, resumed, **sections)
    said = train(config, ranks)
    assert f"(step {step}, " in said
    require_same_run(straight, resumed)


@pytest.fixture(scope="module")
def uninterrupted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(configure(folder / "run.json", base, folder / "out", **PLAIN))
    return folder / "out"


MOVES: dict[str, tuple[tuple[int, str | None], tuple[int, str | None]]] = {  # ranks, ZeRO
    "ZeRO-3 on 2 ranks to one process": ((2, "zero3"), (1, None)),
    "one process to ZeRO-3 on 2 ranks": ((1, None), (2, "zero3")),
    "DDP to ZeRO-2": ((2, None), (2, "zero2")),
    "ZeRO-1 to DDP": ((2, "zero1"), (2, None)),
    "ZeRO-2 to ZeRO-3 with offload": ((2, "zero2"), (2, "zero3_offload")),
}


@pytest.mark.parametrize("move", MOVES)
def test_a_run_moved_to_other_hardware_goes_on_as_if_it_had_not(
    move: str, base: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    (ranks, zero), (other_ranks, other_zero) = MOVES[move]
    out = tmp_path / "out"
    train(configure(tmp_path / "1.json", base, out, **with_zero(PLAIN, zero)), ranks)
    moved = cut_at(out, 4, tmp_path / "moved")
    train(configure(tmp_path / "2.json", base, moved, **with_zero(PLAIN, other_zero)), other_ranks)
    assert training_losses(moved) == pytest.approx(training_losses(uninterrupted), rel=1e-4)


@pytest.mark.parametrize(("ranks", "zero"), [(1, None), (2, "zero2"), (2, "zero3")])
def test_without_its_moments_a_run_goes_on_otherwise(
    ranks: int, zero: str | None, base: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """So the comparison of moved runs does look at them."""
    without = cut_at(uninterrupted, 4, tmp_path / "without")
    forget_moments(without / "checkpoints" / "step-000004")
    train(configure(tmp_path / "run.json", base, without, **with_zero(PLAIN, zero)), ranks)
    assert training_losses(without) != pytest.approx(training_losses(uninterrupted), rel=1e-4)


def forget_moments(checkpoint: Path) -> None:
    """Set a checkpoint's moments to zero, with a manifest to match."""
    file = checkpoint / "optimizer.safetensors"
    tensors = load_file(file)
    assert {name.partition("/")[0] for name in tensors} == {"exp_avg", "exp_avg_sq", "step"}
    save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, file)
    write_manifest(checkpoint)


def test_a_run_goes_from_engine_to_engine(base: Path, uninterrupted: Path, tmp_path: Path) -> None:
    sections = {**with_zero(PLAIN, "zero3"), "checkpoint": {"every_steps": 2}}
    run_directory = tmp_path / "start"
    start("deepspeed", configure(tmp_path / "0.json", base, run_directory, **sections))
    for number, (step, engine) in enumerate(((2, "torchrun"), (4, "accelerate"), (6, "python")), 1):
        run_directory = cut_at(run_directory, step, tmp_path / f"{number}")
        zero = None if engine == "python" else "zero3"
        sections = {**with_zero(PLAIN, zero), "checkpoint": {"every_steps": 2}}
        start(engine, configure(tmp_path / f"{number}.json", base, run_directory, **sections))
    assert training_losses(run_directory) == pytest.approx(training_losses(uninterrupted), rel=1e-4)


def test_the_frozen_base_may_be_stored_otherwise(
    base: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    moved = cut_at(uninterrupted, 4, tmp_path / "moved")
    sections = {**PLAIN, "model": {"quantization": "nf4"}}
    said = train(configure(tmp_path / "run.json", base, moved, **sections))
    assert "(step 4, " in said
    # 4 bits move the losses, but not to where an adapter without these four steps would be.
    assert training_losses(moved) == pytest.approx(training_losses(uninterrupted), rel=0.02)
    assert training_losses(moved)[4:] != training_losses(uninterrupted)[4:]


def test_the_adapter_of_a_checkpoint_is_plain_peft(base: Path, uninterrupted: Path) -> None:
    checkpoint = uninterrupted / "checkpoints" / "latest"
    model = AutoPeftModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    saved = load_file(checkpoint / "adapter_model.safetensors")
    loaded = {
        name.replace(".default", ""): tensor
        for name, tensor in model.state_dict().items()
        if "lora_" in name
    }
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


@pytest.mark.parametrize(
    ("ranks", "zero"),
    [(1, None), (2, "zero2"), (2, "zero3")],
    ids=["one process", "ZeRO-2, in parts", "ZeRO-3, in parts"],
)
def test_full_fine_tuning_goes_on_bit_for_bit(
    ranks: int, zero: str | None, base: Path, tmp_path: Path
) -> None:
    sections = with_zero({**PLAIN, "checkpoint": {"every_steps": 2, "keep_last": 9}}, zero)
    sections = {**sections, "lora": {"dropout": 0, "enabled": False}}
    sections["training"] = {**sections["training"], "learning_rate": 1e-3}
    out = tmp_path / "out"
    train(full(configure(tmp_path / "1.json", base, out, **sections)), ranks)
    resumed = cut_at(out, 2, tmp_path / "resumed")
    train(full(configure(tmp_path / "2.json", base, resumed, **sections)), ranks)
    assert logged(resumed) == logged(out)
    one, other = (load_file(path / "model" / "model.safetensors") for path in (out, resumed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def full(config: Path) -> Path:
    """Take out what full fine-tuning would ignore, and is refused."""
    values = read_json(config)
    values["lora"] = {"enabled": False}
    config.write_text(json.dumps(values), encoding="utf-8")
    return config


def test_parts_of_two_ranks_are_refused_elsewhere_and_kept(base: Path, tmp_path: Path) -> None:
    sections = with_zero(PLAIN, "zero2")
    sections["training"] = {**sections["training"], "max_steps": 2, "learning_rate": 1e-3}
    out = tmp_path / "out"
    train(full(configure(tmp_path / "1.json", base, out, **sections)), ranks=2)
    before = sorted(path.name for path in (out / "checkpoints").iterdir())
    shutil.rmtree(out / "model")
    refused = train_warm(full(configure(tmp_path / "2.json", base, out, **sections)))
    assert refused.returncode == 2, refused.stderr
    assert "2 ranks of zero2, and this is 1 of zero2" in refused.stderr
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == before
