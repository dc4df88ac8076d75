"""Tensors that go into a checkpoint and come back: files, optimizers, generators, loss scale."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.optimization import Adafactor

from trainer.base_identity import base_digest
from trainer.checkpoints.generators import generator_states, seed_generators, set_generators
from trainer.checkpoints.moments import optimizer_tensors, restore_optimizer
from trainer.checkpoints.tensors import SharedTensors
from trainer.errors import EnvironmentProblem
from trainer.host_group import HostGroup
from trainer.loss_scale import get_loss_scale, set_loss_scale
from trainer.safetensors_file import write_safetensors
from trainer.world import World


def test_a_file_written_tensor_by_tensor_is_what_the_library_reads(tmp_path: Path) -> None:
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8)
    tensors = {f"{kind}": torch.arange(7).to(kind) for kind in kinds}
    tensors |= {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "claims": torch.tensor([True, False]),
        "a view": torch.arange(12.0).reshape(3, 4).T,
    }
    write_safetensors(tmp_path / "file.safetensors", tensors)
    read = load_file(tmp_path / "file.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


class Wrapping(torch.optim.SGD):
    """Hides its state from `state_dict`, as bitsandbytes does, and keeps bytes and a count."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state.setdefault("step", 0)
                state.setdefault("state1", torch.zeros(p.shape, dtype=torch.uint8))
                state["step"] += 1
                state["state1"] += state["step"]
                p.data -= 1e-3 * state["state1"] * p.grad

    def state_dict(self) -> dict[str, Any]:
        whole = super().state_dict()
        hidden = {index: {"hidden": kept} for index, kept in whole["state"].items()}
        return {**whole, "state": hidden}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for p, kept in zip(
            [p for group in self.param_groups for p in group["params"]],
            [state_dict["state"][index] for index in sorted(state_dict["state"])],
            strict=True,
        ):
            self.state[p] = dict(kept)


OPTIMIZERS: dict[str, Any] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "one that wraps its state": lambda p: Wrapping(p, lr=0.1),
    "Adafactor": lambda p: Adafactor(p, lr=0.1, relative_step=False),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    def begin() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        model[0].bias.requires_grad_(False)
        groups = [{"params": [model[1].bias]}, {"params": [model[0].weight, model[1].weight]}]
        return model, OPTIMIZERS[kind](groups)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        model(torch.full((1, 4), float(number))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    straight, its_optimizer = begin()
    for number in range(5):
        if number == 3:
            kept = {name: p.detach().clone() for name, p in straight.state_dict().items()}
            moments = dict(optimizer_tensors(straight, its_optimizer))
            write_safetensors(tmp_path / "optimizer.safetensors", moments)
        step(straight, its_optimizer, number)
    resumed, its_optimizer = begin()
    resumed.load_state_dict(kept)
    saved = SharedTensors(tmp_path, "optimizer.safetensors", HostGroup(World()))
    restore_optimizer(resumed, its_optimizer, saved)
    for number in (3, 4):
        step(resumed, its_optimizer, number)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_missing_files_are_not_taken_for_no_tensors(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"no optimizer.safetensors"):
        SharedTensors(tmp_path, "optimizer.safetensors", HostGroup(World()))


def test_every_generator_goes_on_where_it_was() -> None:
    def draw() -> tuple[Any, ...]:
        numpy = np.random.normal(size=3).tolist()
        return random.gauss(0, 1), random.random(), numpy, torch.randn(3).tolist()

    seed_generators(1, 2, 3)
    draw()  # leaves a second Gaussian in Python's and NumPy's generators
    states = generator_states().to_tensors()
    expected = [draw(), draw()]
    seed_generators(9, 9, 9)
    assert draw() != expected[0]
    set_generators(states)
    assert [draw(), draw()] == expected


def test_the_loss_scale_of_fp16_goes_on() -> None:
    def fp16() -> Any:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        return SimpleNamespace(
            args=SimpleNamespace(fp16=True),
            is_deepspeed_enabled=False,
            accelerator=SimpleNamespace(scaler=scaler),
        )

    def step(trainer: Any) -> float:
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        scaler = trainer.accelerator.scaler
        scaler.scale(weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        return float(scaler.get_scale())

    straight = fp16()
    for _ in range(2):
        step(straight)
    saved = get_loss_scale(straight)
    assert saved == {"scale": 8.0, "steps": 2.0}
    resumed = fp16()
    set_loss_scale(resumed, saved)
    # The third good step in a row doubles the scale, also when an attempt began before it.
    assert [step(resumed), step(resumed)] == [step(straight), step(straight)] == [16.0, 16.0]


def test_a_base_model_is_known_by_its_weights(tmp_path: Path) -> None:
    for name, byte in (("one", 1), ("same", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        content = bytearray(1 << 20)
        content[-1] = byte
        (tmp_path / name / f"{name}.safetensors").write_bytes(content)
    one, same, other = (base_digest(str(tmp_path / name)) for name in ("one", "same", "other"))
    assert one == same != other
    assert base_digest(str(tmp_path)) is None
