"""FLOP of a step against PyTorch's own counter, and the rates made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.flops import ModelFlops, Weights, model_flops
from trainer.throughput import Throughput

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def build(*, is_lora: bool, architecture: str = "llama", **changes: Any) -> Any:
    config = AutoConfig.for_model(architecture, **{**SIZES, **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    if not is_lora:
        return model
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    return get_peft_model(model, lora)


@pytest.mark.parametrize("is_lora", [True, False])
def test_flops_of_a_step_are_those_pytorch_counts(is_lora: bool) -> None:
    """Up to what PyTorch counts and training could do without: the masked half of attention."""
    model = build(is_lora=is_lora)
    tokens = 32
    ids = torch.arange(tokens)[None]
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[0], ids[0]).backward()
    flops = model_flops(model)
    ours = flops.of_step(np.array([tokens], np.int32), tokens)
    masked = 12 * flops.attention_width * 3 * (tokens**2 - tokens * (tokens + 1) / 2)
    # The first layer's frozen weights have no input to send a gradient to.
    first = 2 * tokens * (64 * 64 + 2 * 64 * 32) if is_lora else 0
    first_adapters = 2 * tokens * 3 * 64 * 4 if is_lora else 0
    assert ours + masked - first - first_adapters == pytest.approx(
        counter.get_total_flops(), rel=0.01
    )


def test_windows_and_experts() -> None:
    no_weights = Weights(0, 0)
    flops = ModelFlops(no_weights, no_weights, attention_width=1, windows=(0, 3))
    pairs = sum(range(1, 8)) + (1 + 2 + 3 * 5)
    assert flops.of_step(np.array([7], np.int32), 0) == 12 * pairs
    dense = model_flops(build(is_lora=False)).layers.trained
    sparse = model_flops(
        build(is_lora=False, architecture="mixtral", num_local_experts=8, num_experts_per_tok=2)
    ).layers.trained
    experts = 3 * 3 * 64 * 96
    assert sparse == dense - experts + 2 * experts + 3 * 64 * 8


def test_rates_are_of_one_device_and_leave_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 106.0, 106.0])
    monkeypatch.setattr("trainer.throughput.time.perf_counter", lambda: next(clock))
    flops = ModelFlops(Weights(10, 0), Weights(0, 0), attention_width=0, windows=())
    throughput = Throughput(flops, world_size=2, peak=1000.0)
    throughput.add({"micro_batches": [], "num_labels": 20, "lengths": torch.tensor([30, 10])})
    throughput.leave_out(2.0)
    assert throughput.read() == {
        "tokens_per_second": 10.0,
        "labelled_tokens_per_second": 5.0,
        "tflops_per_second": 4 * 10 * 40 / 4 / 2 / 1e12,
        "mfu": 4 * 10 * 40 / 4 / 2 / 1000.0,
    }
