"""The GPU protocol's own arithmetic, rows and random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from benchmarks.gpu import longest, parity
from benchmarks.gpu.case import RANK
from benchmarks.gpu.flops import count, lora_flops_per_token
from benchmarks.gpu.peers import lora_config
from benchmarks.gpu.random_base import random_base, replacing_downloads
from benchmarks.gpu.rows import RowSpec, make_rows
from benchmarks.gpu.sizes import dry_sizes, real_sizes

CPU = torch.device("cpu")
TINY = dry_sizes().tiny


@pytest.mark.parametrize(("tokens", "giga"), [(1024, 31.1), (4096, 33.5), (8192, 36.7)])
def test_flops_of_an_8b_lora_are_the_ones_counted_by_hand(tokens: int, giga: float) -> None:
    _, shape = real_sizes(80.0).big
    counts = count(shape, RANK)
    assert counts.adapter == 41_943_040  # what PEFT prints for this model
    assert lora_flops_per_token(counts, [tokens]) / 1e9 == pytest.approx(giga, abs=0.05)


def test_attention_counts_the_length_of_a_tokens_own_example() -> None:
    counts = count(TINY, RANK)
    alone = [lora_flops_per_token(counts, [tokens]) for tokens in (10, 30)]
    together = lora_flops_per_token(counts, [10, 30])
    assert together * 40 == pytest.approx(alone[0] * 10 + alone[1] * 30)


@pytest.mark.parametrize("shape", [TINY, real_sizes(80.0).small[1]])
def test_weights_are_counted_as_the_model_has_them(shape: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        base = sum(module.weight.numel() for module in linear)
        adapted = get_peft_model(model, lora_config())
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    counts = count(shape, RANK)
    assert (counts.base, counts.adapter) == (base, trained)


@pytest.mark.parametrize("tied", [False, True])
def test_a_random_base_is_the_model_its_weights_make(tmp_path: Path, tied: bool) -> None:
    """Written and loaded by transformers it gives the same logits: no buffer is left unmade."""
    config = AutoConfig.for_model(**{**TINY, "tie_word_embeddings": tied})
    model = random_base(config, dtype=torch.float32, device=CPU)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(3, 40)[None]
    assert torch.equal(model(ids).logits, loaded(ids).logits)


def test_a_random_base_has_the_same_weights_in_every_precision() -> None:
    config = AutoConfig.for_model(**TINY)
    wide = random_base(config, dtype=torch.float32, device=CPU).state_dict()
    narrow = random_base(config, dtype=torch.bfloat16, device=CPU).state_dict()
    assert all(torch.equal(narrow[name].float(), wide[name]) for name in wide)


def test_a_quantised_random_base_holds_the_same_weights_in_four_bits() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    config = AutoConfig.for_model(**TINY)
    plain = random_base(config, dtype=torch.bfloat16, device=CPU)
    asked = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    with replacing_downloads():
        model = AutoModelForCausalLM.from_pretrained(
            "nowhere",
            config=config,
            dtype=torch.bfloat16,
            device_map={"": CPU},
            quantization_config=asked,
        )
    layer, exact = (m.model.layers[0].mlp.up_proj.weight for m in (model, plain))
    stored = functional.dequantize_4bit(layer.data, layer.quant_state)
    assert layer.numel() < exact.numel()
    # Against the weights, not a permutation: NF4 is off by a tenth, others would be by all.
    assert (stored - exact).norm() / exact.norm() < 0.2
    assert torch.equal(model.lm_head.weight, plain.lm_head.weight)


def test_rows_are_the_same_each_time_and_as_long_as_asked() -> None:
    spec = RowSpec(vocabulary=1000, longest=1024, mean=250, labelled=0.3)
    rows = make_rows(spec, 4000)
    lengths = np.array([len(ids) for ids, _ in rows])
    assert lengths.max() == 1024
    assert 235 < lengths.mean() < 255  # cutting at the longest takes a little
    assert sum(mask.sum() for _, mask in rows) / lengths.sum() == pytest.approx(0.3, abs=0.01)
    assert all(mask[-1] and not mask[0] for _, mask in rows)
    again = make_rows(spec, 4000)
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(rows, again, strict=True))
    assert {len(ids) for ids, _ in make_rows(RowSpec(1000, 64), 9)} == {64}


@pytest.mark.parametrize("limit", [700, 5000, 39_999, 78_475])
@pytest.mark.parametrize("guess_off", [None, 0.9, 1.0, 1.2])
def test_bisection_closes_in_on_the_longest(limit: int, guess_off: float | None) -> None:
    tried: list[int] = []

    def fits(tokens: int) -> bool:
        tried.append(tokens)
        return tokens <= limit

    guess = None if guess_off is None else guess_off * limit
    low, high = longest.bisect_longest(fits, 512, 131_072, lambda _: False, guess=guess)
    assert high is not None
    assert low <= limit < high
    assert high - low <= max(64, 0.02 * low)
    assert len(tried) == len(set(tried)) < 20


def test_bisection_stops_when_time_is_over_or_everything_fits() -> None:
    assert longest.bisect_longest(lambda _: True, 64, 256, lambda _: False) == (256, None)
    assert longest.bisect_longest(lambda _: True, 64, 256, lambda n: n > 128) == (128, None)


def test_memory_is_extrapolated_along_a_line() -> None:
    short, long = ({"tokens": n, "peak_gib": 6 + n / 1000} for n in (4000, 8000))
    assert longest.extrapolate(short, long, 24.0) == pytest.approx(18_000)


def test_errors_of_gradients_are_relative_and_miss_nothing() -> None:
    reference = {"a": torch.ones(4), "b": torch.full((4,), 2.0)}
    off = {"a": torch.full((4,), 1.1), "b": torch.full((4,), 2.0)}
    found = parity.errors(off, reference)
    assert found["worst"] == pytest.approx(0.1)
    assert found["all"] == pytest.approx(0.1 / 5**0.5)
    assert parity.errors({"a": reference["a"]}, reference) == {"all": 1.0, "worst": 1.0}
