"""What a step must compute, and what that makes of a measured speed. Pure.

Letters: N weights that take part in a matrix product per token (head included, embedding not),
T tokens of one example, att the forward FLOP of causal attention per token, 2 x layers x width x T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TERA = 1e12


@dataclass(frozen=True)
class Counts:
    """Weights of a Llama-shaped model with adapters on all linear layers but the head."""

    base: int  # N
    adapter: int
    attention_width: int  # heads x head size
    layers: int


def count(shape: Mapping[str, Any], rank: int) -> Counts:
    """Count from the values of a config.json."""
    hidden, inner, layers = (
        shape["hidden_size"],
        shape["intermediate_size"],
        shape["num_hidden_layers"],
    )
    heads = shape["num_attention_heads"]
    size = shape.get("head_dim") or hidden // heads
    queries, keys = heads * size, shape["num_key_value_heads"] * size
    matrices = (
        (hidden, queries),
        (hidden, keys),
        (hidden, keys),
        (queries, hidden),
        (hidden, inner),
        (hidden, inner),
        (inner, hidden),
    )
    return Counts(
        base=layers * sum(a * b for a, b in matrices) + hidden * shape["vocab_size"],
        adapter=layers * sum(rank * (a + b) for a, b in matrices),
        attention_width=queries,
        layers=layers,
    )


def lora_flops_per_token(counts: Counts, lengths: Sequence[int]) -> float:
    """FLOP of forward and backward, without recomputation: 4 N + 3 att + 6 N_lora.

    Frozen weights need no weight gradient, hence 4 and not 6; attention counts the length of a
    token's own example, so a mean over tokens.
    """
    tokens = sum(lengths)
    own_length = sum(length * length for length in lengths) / tokens
    attention = 2 * counts.layers * counts.attention_width * own_length
    return 4 * counts.base + 3 * attention + 6 * counts.adapter


def utilisation(tokens_per_second: float, flops_per_token: float, peak_tflops: float) -> float:
    """Share of the card's measured matrix product rate that the model's own FLOP make up."""
    return tokens_per_second * flops_per_token / (peak_tflops * TERA)
