"""Every way to adapt every tiny architecture learns, and reloads as what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.tiny import ARCHITECTURES, make_model_folder
from trainer.config import Config
from trainer.model import BuiltModel, build_model

CPU = torch.device("cpu")
SIZES = {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes blocks hold 64 values
KINDS: dict[str, dict[str, Any]] = {
    "nf4": {"model": {"quantization": "nf4"}},
    "int8": {"model": {"quantization": "int8"}},
    "dora": {"lora": {"use_dora": True}},
    "rslora": {"lora": {"use_rslora": True}},
    "full": {"lora": {"enabled": False}},
}
BATCH = torch.arange(3, 43).reshape(2, 20)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make_model_folder(root / name, name, **SIZES) for name in ARCHITECTURES}


def make_config(folder: Path, **sections: dict[str, Any]) -> Config:
    return Config.model_validate(
        {
            "model": {"name": str(folder), **sections.get("model", {})},
            "data": {"train": "train.jsonl"},
            "lora": {"r": 4, "dropout": 0.0, **sections.get("lora", {})},
            "training": sections.get("training", {}),
            "output_dir": "run",
        }
    )


def train(built: BuiltModel, steps: int = 6) -> list[float]:
    trainable = [p for p in built.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=5e-3)
    losses = []
    for _ in range(steps):
        loss = built.model(input_ids=BATCH, labels=BATCH, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=BATCH, use_cache=False).logits


def load_fresh(folder: Path, kind: str) -> Any:
    quantization = None
    if kind == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    if kind == "int8":
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map={"": CPU}, quantization_config=quantization
    )
    for module in model.modules():
        if isinstance(module, Linear4bit):  # on some CPUs it would compute in bf16 in eval mode
            module.support_avx512bf16_for_cpu = False
    return model


def test_gradients_pass_through_4_bits_after_an_evaluation(folders: dict[str, Path]) -> None:
    config = make_config(folders["qwen2"], model={"quantization": "nf4"})
    built = build_model(config, device=CPU, precision="fp32")

    def gradients() -> list[torch.Tensor]:
        built.model.train()
        built.model(input_ids=BATCH, labels=BATCH, use_cache=False).loss.backward()
        trained = [p for p in built.model.parameters() if p.requires_grad]
        kept = [p.grad.clone() for p in trained if p.grad is not None]
        built.model.zero_grad()
        return kept

    before = gradients()
    logits(built.model)
    after = gradients()
    assert len(before) == len(after) > 0
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_learns_and_reloads(
    kind: str, architecture: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders[architecture]
    built = build_model(make_config(folder, **KINDS[kind]), device=CPU, precision="fp32")
    untrained = logits(built.model)
    losses = train(built)
    assert losses[-1] < losses[0] - 0.05
    trained = logits(built.model)
    assert not torch.allclose(trained, untrained, atol=1e-3)
    built.model.save_pretrained(tmp_path)
    if kind == "full":
        again = load_fresh(tmp_path, kind)
    else:
        again = PeftModel.from_pretrained(load_fresh(folder, kind), tmp_path)
    torch.testing.assert_close(logits(again), trained, atol=1e-5, rtol=1e-5)


def test_only_adapters_train_and_in_float32(folders: dict[str, Path]) -> None:
    lora = {"bias": "all", "modules_to_save": ["lm_head"]}
    config = make_config(folders["qwen2"], lora=lora)
    model = build_model(config, device=CPU, precision="bf16").model
    for name, parameter in model.named_parameters():
        chosen = "lora_" in name or "modules_to_save" in name or name.endswith(".bias")
        assert parameter.requires_grad == chosen, name
        assert parameter.dtype == (torch.float32 if chosen else torch.bfloat16), name


def test_full_fine_tuning_keeps_float32_masters(folders: dict[str, Path]) -> None:
    config = make_config(folders["llama"], lora={"enabled": False})
    model = build_model(config, device=CPU, precision="bf16").model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.parameters())


def test_four_bit_storage_and_compute_share_one_type(folders: dict[str, Path]) -> None:
    config = make_config(folders["llama"], model={"quantization": "nf4"})
    model = build_model(config, device=CPU, precision="bf16").model
    packed = [p for p in model.parameters() if type(p).__name__ == "Params4bit"]
    assert packed
    assert {p.dtype for p in packed} == {torch.bfloat16}
    layer = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert layer.compute_dtype == torch.bfloat16
    assert layer.weight.quant_state.nested
    # Embeddings and head stay in the compute type: no upcast copy.
    assert model.get_base_model().lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_checkpointing_gives_the_same_gradients(
    quantization: str, folders: dict[str, Path]
) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = make_config(
            folders["llama"],
            model={"quantization": quantization},
            training={"gradient_checkpointing": checkpointing},
        )
        model = build_model(config, device=CPU, precision="fp32").model
        assert model.get_base_model().model.gradient_checkpointing == checkpointing
        model.train()(input_ids=BATCH, labels=BATCH, use_cache=False).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all("lora_" in name and grad is not None for name, grad in gradients[1].items())
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)
    assert any(float(grad.abs().max()) > 0 for grad in gradients[1].values())
