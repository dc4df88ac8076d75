"""Every fast path on, against plain PEFT on one example at a time: losses and every gradient."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from trainer.attention import choose_attention
from trainer.config import ModelConfig
from trainer.data.collate import MicroBatch, collate
from trainer.kernels import compiling, segment_attention
from trainer.kernels.compiling import compile_training
from trainer.kernels.lora import speed_up_adapters
from trainer.kernels.packed_attention import PACKED, attend_in_segments
from trainer.loss import prepare_loss, summed_loss

VOCABULARY = 320
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "vocab_size": VOCABULARY,
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
LLAMA = {**SIZES, **HEADS}
WINDOW = {"sliding_window": 5}
# Architecture -> its sizes, and whether its attention is packed.
ARCHITECTURES: dict[str, tuple[dict[str, Any], bool]] = {
    "llama": (LLAMA, True),
    "mistral": ({**LLAMA, **WINDOW}, True),
    "qwen2": ({**LLAMA, **WINDOW, "use_sliding_window": True, "max_window_layers": 2}, True),
    "qwen3": (LLAMA, True),
    "gemma": ({**LLAMA}, True),  # tied head
    "gemma2": ({**LLAMA, **WINDOW, "final_logit_softcapping": 3.0}, False),  # scores capped too
    "gemma3_text": ({**LLAMA, **WINDOW, "query_pre_attn_scalar": 16}, True),
    "granite": ({**LLAMA, "logits_scaling": 4.0, "attention_multiplier": 0.3}, True),
    "cohere": ({**LLAMA, "logit_scale": 0.25}, True),
    "phi3": ({**LLAMA, "pad_token_id": 0}, True),  # joined projections
    "mixtral": ({**LLAMA, "num_local_experts": 4}, True),
    "gpt_neox": ({**SIZES, "num_attention_heads": 4}, True),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY}, False),  # dropout
}
LENGTHS = (9, 1, 17, 8, 30, 2)


@pytest.fixture
def as_it_was() -> Any:
    """Kernels are compiled or not for a whole process."""
    yield
    compiling._Switch.on = False


def architecture_of(name: str) -> PreTrainedConfig:
    sizes, _ = ARCHITECTURES[name]
    return AutoConfig.for_model(name, **{"max_position_embeddings": 64, **sizes})


def make_adapted(config: PreTrainedConfig, attention: str | None, targets: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=attention)
    model.requires_grad_(False)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=6,
        target_modules=targets,
        init_lora_weights=False,
        fan_in_fan_out=config.model_type == "gpt2",
    )
    adapted = get_peft_model(model, lora).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # not so large that float32 itself is off by 1e-5
            parameter.data *= 0.3
    return adapted


def make_rows(lengths: tuple[int, ...] = LENGTHS) -> list[tuple[Any, Any]]:
    generator = np.random.default_rng(0)
    return [
        (
            generator.integers(0, VOCABULARY, length).astype(np.int32),
            generator.random(length) < 0.6,
        )
        for length in lengths
    ]


def reference(model: Any, rows: list[tuple[Any, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
    """The plain model, one example at a time, full logits."""
    total = torch.zeros(())
    for ids, mask in rows:
        logits = model(input_ids=torch.tensor(ids, dtype=torch.int64)[None]).logits[0]
        for position in np.flatnonzero(mask):
            if position:
                target = torch.tensor([int(ids[position])])
                total = total + functional.cross_entropy(logits[position - 1][None], target)
    total.backward()
    return float(total.detach()), gradients_of(model)


def gradients_of(model: Any) -> dict[str, torch.Tensor]:
    named = model.named_parameters()
    return {name: p.grad.double() for name, p in named if p.grad is not None}


def fast(model: Any, micro_batch: MicroBatch, monkeypatch: pytest.MonkeyPatch) -> tuple[float, Any]:
    monkeypatch.setitem(_pieces(), "cpu", 7 * VOCABULARY)  # seven positions at a time
    plan = prepare_loss(model, "cpu")
    assert plan.way == "chunked"
    loss = summed_loss(model, micro_batch, plan)
    loss.backward()
    with torch.no_grad():
        assert float(summed_loss(model, micro_batch, plan)) == pytest.approx(float(loss.detach()))
    return float(loss.detach()), gradients_of(model)


def _pieces() -> dict[str, int]:
    from trainer import loss

    return loss._LOGITS_OF_PIECE


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        error = float((found[name] - gradient).norm() / gradient.norm().clamp_min(1e-6))
        assert error < 1e-5, (name, error)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fast_paths_give_the_gradients_of_plain_peft(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = architecture_of(name)
    attention, _ = choose_attention(ModelConfig(name="m"), "cpu", "fp32", config)
    assert (attention == PACKED) is ARCHITECTURES[name][1]
    targets = "all-linear" if name != "mixtral" else ["q_proj", "v_proj", "o_proj"]
    rows = make_rows()
    wanted_loss, wanted = reference(make_adapted(config, "eager", targets), rows)
    model = make_adapted(config, attention, targets)
    assert speed_up_adapters(model) > 0
    loss, gradients = fast(model, collate(rows), monkeypatch)
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert_same(gradients, wanted)


def test_adapters_on_the_head_train_through_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    config = architecture_of("llama")
    targets = ["q_proj", "lm_head"]
    rows = make_rows()
    _, wanted = reference(make_adapted(config, "eager", targets), rows)
    assert sum("lm_head" in name for name in wanted) == 2
    model = make_adapted(config, PACKED, targets)
    speed_up_adapters(model)
    assert_same(fast(model, collate(rows), monkeypatch)[1], wanted)


@pytest.mark.usefixtures("as_it_was")
def test_compiled_layers_give_the_gradients_of_plain_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiling.has_compiler():
        pytest.skip("no C++ compiler")
    config = architecture_of("mistral")
    rows = make_rows()
    _, wanted = reference(make_adapted(config, "eager", "all-linear"), rows)
    model = make_adapted(config, PACKED, "all-linear")
    speed_up_adapters(model)
    compile_training(model)
    assert_same(fast(model.train(), collate(rows), monkeypatch)[1], wanted)


@pytest.mark.parametrize("window", [0, 1, 8, 200])
@pytest.mark.parametrize("heads", [(4, 4), (9, 3)])
@pytest.mark.parametrize("lengths", [(1,), (92, 92, 90), (300, 40, 39, 7, 1), (129, 128, 127)])
def test_segments_attend_as_a_masked_row_does(
    lengths: tuple[int, ...], heads: tuple[int, int], window: int
) -> None:
    """Against PyTorch's attention with a dense mask, in float64."""
    torch.manual_seed(0)
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    tokens, (num_heads, num_kv_heads) = sum(lengths), heads
    inputs = [
        torch.randn(1, number, tokens, 16, dtype=torch.float64, requires_grad=True)
        for number in (num_heads, num_kv_heads, num_kv_heads)
    ]
    row = torch.arange(tokens)
    segment = torch.zeros(tokens, dtype=torch.int64)
    for number, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        segment[start:end] = number
    mask = (segment[:, None] == segment) & (row <= row[:, None])
    if window:
        mask &= row > row[:, None] - window
    wanted = functional.scaled_dot_product_attention(
        *inputs, attn_mask=mask, scale=0.3, enable_gqa=True
    )
    upstream = torch.randn_like(wanted)
    reference_gradients = torch.autograd.grad(wanted, inputs, upstream)
    single = [tensor.detach().float().requires_grad_() for tensor in inputs]
    output, _ = attend_in_segments(*single, cu_seqlens, 0.3, window)
    gradients = torch.autograd.grad(output, single, upstream.float())
    for found, exact in zip((output, *gradients), (wanted, *reference_gradients), strict=True):
        torch.testing.assert_close(found, exact.float(), rtol=2e-5, atol=2e-5)


def test_the_operator_is_what_compilers_are_told() -> None:
    q, k, v = (torch.randn(1, heads, 20, 8, requires_grad=True) for heads in (4, 2, 2))
    boundaries = torch.tensor([0, 7, 20], dtype=torch.int32)
    torch.library.opcheck(attend_in_segments, (q, k, v, boundaries, 0.3, 0))


def test_blocks_pad_little() -> None:
    """Slots over tokens, for lengths like those of chats."""
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 60).astype(int).clip(8, 1024)
    boundaries = (0, *(int(end) for end in np.cumsum(lengths)))
    layout = segment_attention._layout(boundaries, 1, 1, torch.device("cpu"))
    assert sorted(layout.queries.gather[layout.queries.scatter].tolist()) == list(
        range(boundaries[-1])
    )
    assert len(layout.queries.gather) < 1.25 * boundaries[-1]


def test_adapters_can_still_be_switched_off() -> None:
    model = make_adapted(architecture_of("llama"), PACKED, "all-linear")
    ids = torch.arange(1, 9)[None]
    with_adapters = model(input_ids=ids).logits
    with model.disable_adapter():
        without = model(input_ids=ids).logits
    speed_up_adapters(model)
    torch.testing.assert_close(model(input_ids=ids).logits, with_adapters)
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=ids).logits, without)


def test_full_fine_tuning_in_autocast_attends_in_16_bits() -> None:
    """Float32 masters leave queries and keys in float32 beside values in bfloat16."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(architecture_of("llama"), attn_implementation=PACKED)
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("sdpa")
    micro_batch = collate(make_rows())
    losses = []
    for one in (model, plain):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = summed_loss(one, micro_batch, prepare_loss(one, "cpu"))
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    found, wanted = (one.model.layers[0].self_attn.q_proj.weight.grad for one in (model, plain))
    assert float((found - wanted).norm() / wanted.norm()) < 0.05


def test_dropout_and_variants_stay_with_peft() -> None:
    base = AutoModelForCausalLM.from_config(architecture_of("llama"))
    for options in ({"lora_dropout": 0.1}, {"use_dora": True}):
        lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], **options)
        assert speed_up_adapters(get_peft_model(copy.deepcopy(base), lora)) == 0
