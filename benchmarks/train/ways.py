"""The ways of training that are compared, and what is chosen for each before it is timed. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.train.profiles import PAD_STEP

Library = Literal["rankzero", "transformers", "trl"]
Attention = Literal["sdpa", "eager"]


@dataclass(frozen=True)
class Way:
    """One contender."""

    name: str
    library: Library
    title: str
    pads_to_max: bool = False
    groups_by_length: bool = False
    is_padding_free: bool = False
    """The examples of a batch lie in one row."""
    compiles: bool = False
    settings_of: str | None = None
    """The way whose best settings it takes: a search would compile for each."""
    packs: bool = False
    """Full rows of whole examples are the unit of a step: other steps than the rest."""


_ALL = (
    Way("rankzero", "rankzero", "RankZero"),
    Way(
        "trainer-padded",
        "transformers",
        "transformers.Trainer, padded to the maximum",
        pads_to_max=True,
    ),
    Way(
        "trainer-grouped",
        "transformers",
        "transformers.Trainer, group_by_length",
        groups_by_length=True,
    ),
    Way(
        "trainer-compiled",
        "transformers",
        "transformers.Trainer, group_by_length, torch_compile",
        groups_by_length=True,
        compiles=True,
        settings_of="trainer-grouped",
    ),
    Way("trl", "trl", "TRL SFTTrainer"),
    Way("trl-grouped", "trl", "TRL SFTTrainer, group_by_length", groups_by_length=True),
    Way("trl-padding-free", "trl", "TRL SFTTrainer, padding_free", is_padding_free=True),
    Way(
        "trl-packing",
        "trl",
        "TRL SFTTrainer, packing (other steps)",
        is_padding_free=True,
        packs=True,
    ),
)
WAYS: Mapping[str, Way] = {way.name: way for way in _ALL}
OURS = _ALL[0].name
DEFAULT_WAYS = [way.name for way in _ALL if not way.compiles]  # minutes to compile, for each shape


@dataclass(frozen=True)
class Choice:
    """What a peer leaves to its user."""

    attention: Attention
    batch: int
    """Rows of a micro-batch."""

    def __str__(self) -> str:
        return f"{self.attention}, batch {self.batch}"


@dataclass(frozen=True)
class Rows:
    """What is known of a profile's rows. Units: tokens."""

    examples_per_step: int
    steps_per_round: int
    max_length: int
    longest: int
    mean: float

    def units_of_step(self, way: Way) -> int:
        """Rows of the data set that make a step: examples, or packed rows of as many tokens."""
        if way.packs:
            return max(1, round(self.examples_per_step * self.mean / self.max_length))
        return self.examples_per_step

    def padded_length(self, way: Way) -> int:
        """Tokens of a row of a full batch, at most."""
        return self.longest + -self.longest % PAD_STEP if way.pads_to_max else self.longest


def training_bytes(way: Way, choice: Choice, rows: Rows, model: Mapping[str, Any]) -> float:
    """Estimate what grows with the batch: logits where a way keeps them all, and eager attention.

    Source: bf16 logits, their float32 copy and its gradient are 2 + 4 + 4 bytes, and one copy more
    may live; eager attention keeps probabilities and their float32 softmax, about 8 bytes each.
    """
    if way.packs:
        num_rows, length = 1.0, float(choice.batch * rows.max_length)
    elif way.is_padding_free:
        num_rows, length = 1.0, max(float(rows.longest), choice.batch * rows.mean)
    else:
        num_rows, length = float(choice.batch), float(rows.padded_length(way))
    tokens = num_rows * length
    logits = tokens * model["vocab_size"] * 12 if way.library == "transformers" else 0.0
    pairs = model["num_hidden_layers"] * model["num_attention_heads"] * tokens * length
    return logits + (8 * pairs if choice.attention == "eager" else 0.0)
