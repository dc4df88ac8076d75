"""The simulated step against real tensors, and the facts against deeper simulated models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import make_model_folder
from trainer.config import Config, load_config
from trainer.lora import attach_adapter
from trainer.loss import prepare_loss
from trainer.model import build_model
from trainer.model_facts import ModelFacts, activation_key
from trainer.precision import DTYPES
from trainer.shapes import measure_facts, measure_sizes
from trainer.simulate import MemoryTracker, materialize, simulate_step, simulation
from trainer.simulated_model import build_simulated, load_architecture, with_layers

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def make_config(base: Path, folder: Path, *, quantization: str = "none", **sections: Any) -> Config:
    values = {
        "model": {"name": str(base), "quantization": quantization},
        "data": {"train": "rows.jsonl"},
        "output_dir": str(folder / "run"),
        **sections,
    }
    path = folder / "run.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return load_config(path)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("is_lora", [True, False])
def test_a_simulated_step_holds_what_a_real_one_does(
    is_lora: bool, checkpointing: bool, base: Path, tmp_path: Path
) -> None:
    config = make_config(
        base,
        tmp_path,
        lora={"enabled": True, "dropout": 0.1} if is_lora else {"enabled": False},
        training={"gradient_checkpointing": checkpointing},
    )
    sizes: dict[str, Any] = {"num_tokens": 96, "num_labels": 40, "autocast": None}

    real = build_model(config, device=torch.device("cpu"), precision="fp32").model
    for parameter in real.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    real_loss = prepare_loss(real, "cpu")
    with MemoryTracker() as tracker:
        tracker.follow(*real.parameters(), *real.buffers())
        for _ in range(2):  # the first recomputation ever holds some tensors for longer
            measured = simulate_step(real, tracker, loss_plan=real_loss, **sizes)

    built = build_simulated(
        config,
        load_architecture(config),
        precision="fp32",
        casting="autocast",
        checkpointing=checkpointing,
    )
    with simulation("cpu") as tracker:
        materialize(built)
        simulated = simulate_step(built, tracker, loss_plan=prepare_loss(built, "cpu"), **sizes)
    assert simulated == measured


def test_facts_foresee_a_deeper_model(tmp_path: Path) -> None:
    """Two layers and three lengths are measured; sixteen layers at another length come out."""
    config = make_config(TESTS / "model_configs" / "llama-3.2-1b", tmp_path)
    architecture = with_layers(load_architecture(config), 5)
    facts = ModelFacts.model_validate_json(
        (TESTS / "model_facts" / "llama-3.2-1b.lora.json").read_bytes()
    )
    per_layer = {}
    for layers in (3, 5):
        built = build_simulated(
            config,
            with_layers(architecture, layers),
            precision="bf16",
            casting="autocast",
            checkpointing=False,
        )
        with simulation("cuda") as tracker:
            materialize(built)
            per_layer[layers] = simulate_step(
                built,
                tracker,
                num_tokens=1500,
                num_labels=700,
                autocast=DTYPES["bf16"],
                loss_plan=prepare_loss(built, "cuda"),
            )
    grown = per_layer[5].peak + (16 - 5) / 2 * (per_layer[5].peak - per_layer[3].peak)
    known = facts.activations[activation_key("autocast", checkpointing=False)]
    assert grown <= 1.01 * known.peak(1500, 700)
    assert known.peak(1500, 700) <= 1.05 * grown


def test_kept_facts_are_what_is_measured_now(tmp_path: Path) -> None:
    """tests/model_facts go stale when the model code or its libraries change."""
    config = make_config(TESTS / "model_configs" / "llama-3.2-1b", tmp_path)
    kept = (TESTS / "model_facts" / "llama-3.2-1b.lora.json").read_bytes()
    now = measure_facts(config, precision="bf16", device_type="cuda", castings=("autocast",))
    then = ModelFacts.model_validate_json(kept)
    assert now.model_copy(update={"activations": {}}) == then.model_copy(update={"activations": {}})
    for key, activations in now.activations.items():
        assert activations.peak(2048, 2048) == pytest.approx(
            then.activations[key].peak(2048, 2048), rel=0.02
        )


@pytest.mark.parametrize(
    ("quantization", "bits"), [("nf4", 4 + 8 / 64 + 32 / (64 * 256)), ("int8", 8)]
)
def test_quantised_weights_take_their_bits(quantization: str, bits: float, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    known = TESTS / "model_configs" / "llama-3.2-1b"
    config = make_config(known, tmp_path, quantization=quantization)
    sizes = measure_sizes(config, load_architecture(config), "bf16")
    in_16_bits = 2 * (sizes["frozen_parameters"] - sizes["quantized_parameters"])
    packed = sizes["frozen_bytes"] - in_16_bits
    assert packed == pytest.approx(sizes["quantized_parameters"] * bits / 8, rel=0.002)
    assert sizes["quantized_parameters"] == 973_078_528  # all linear layers but the tied head


def test_zero_3_adapters_are_of_the_compute_type(base: Path, tmp_path: Path) -> None:
    config = make_config(base, tmp_path)
    model = build_model(config, device=torch.device("cpu"), precision="fp32").model.get_base_model()
    adapted, _ = attach_adapter(model, config.lora, dtype=torch.bfloat16)
    kinds = {p.dtype for n, p in adapted.named_parameters() if "lora_" in n}
    assert kinds == {torch.bfloat16}
