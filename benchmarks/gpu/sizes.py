"""What is measured on this card: shapes, rows, and the attempts from the fastest downwards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.case import Case
from benchmarks.gpu.rows import RowSpec

Shape = Mapping[str, Any]
Attempt = tuple[int, bool]  # size of a micro-batch, activation checkpointing

_SHAPES = Path(__file__).resolve().parents[2] / "tests" / "model_configs"
_FASTEST_FIRST: Sequence[Attempt] = (
    (16, False),
    (8, False),
    (4, False),
    (8, True),
    (4, True),
)  # in rows of the longest length
# GiB of a card -> attempts on the 8B shape that cannot fit: 15 GiB of weights, and at least 4 MiB
# of activations for each token without checkpointing.
_HOPELESS = ((100.0, 0), (60.0, 1), (40.0, 2), (0.0, 3))
_TINY: Shape = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


@dataclass(frozen=True)
class Sizes:
    """Units: tokens, unless named otherwise."""

    device: str
    big: tuple[str, Shape]
    small: tuple[str, Shape]
    tiny: Shape
    matmul_side: int
    copy_mib: int
    full_row: int
    mean: int
    longest: int
    memory_gib: float
    loss_tokens: Sequence[int]
    loss_repeats: int
    examples_per_step: int
    warm_up: int
    steps: int
    capped_gib: float
    capped_tokens: Sequence[int]
    context: tuple[int, int]

    def attempts(self, shape: Shape) -> list[Attempt]:
        """Micro-batches to try, the fastest first."""
        skipped = next(skipped for least, skipped in _HOPELESS if self.memory_gib >= least)
        if shape is not self.big[1] or self.device == "cpu":
            skipped = 0
        return [(rows * self.longest, is_on) for rows, is_on in _FASTEST_FIRST[skipped:]]

    def mixed(self, shape: Shape, *, labelled: float = 1.0) -> Case:
        """Rows of very unequal lengths; who trains on them is filled in."""
        return Case(
            contender="ours",
            shape=shape,
            rows=RowSpec(shape["vocab_size"], self.longest, self.mean, labelled),
            device=self.device,
            micro_batch_tokens=self.longest,
            examples_per_step=self.examples_per_step,
            warm_up=self.warm_up,
            steps=self.steps,
        )

    def full(self, shape: Shape) -> Case:
        """Rows that are all full, four in a step."""
        case = self.mixed(shape).with_(examples_per_step=4)
        return case.with_(rows=RowSpec(shape["vocab_size"], self.full_row))


def real_sizes(memory_gib: float) -> Sizes:
    """For one card."""
    return Sizes(
        device="cuda",
        big=("Llama-3.1-8B", _shape("llama-3.1-8b")),
        small=("Llama-3.2-1B", _shape("llama-3.2-1b")),
        tiny=_TINY,
        matmul_side=8192,
        copy_mib=4096,
        full_row=4096,
        mean=250,
        longest=1024,
        memory_gib=memory_gib,
        loss_tokens=(4096, 8192, 32768),
        loss_repeats=10,
        examples_per_step=64,
        warm_up=5,
        steps=20,
        capped_gib=23.5,  # of a card sold as 24 GB, less what CUDA itself takes
        capped_tokens=(4096, 16384),
        context=(4096, 131072),
    )


def dry_sizes() -> Sizes:
    """For the CPU: every path, in seconds."""
    return Sizes(
        device="cpu",
        big=("tiny", _TINY),
        small=("tiny, fewer layers", {**_TINY, "num_hidden_layers": 1}),
        tiny=_TINY,
        matmul_side=256,
        copy_mib=8,
        full_row=64,
        mean=20,
        longest=64,
        memory_gib=0.0,
        loss_tokens=(64, 128),
        loss_repeats=2,
        examples_per_step=8,
        warm_up=1,
        steps=3,
        capped_gib=24.0,
        capped_tokens=(64,),
        context=(64, 256),
    )


def _shape(name: str) -> Shape:
    shape: Shape = json.loads((_SHAPES / name / "config.json").read_text(encoding="utf-8"))
    return shape
