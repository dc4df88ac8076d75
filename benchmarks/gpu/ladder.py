"""The ablation ladder: the same rows, one piece of the trainer added after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rung:
    """`changes`: fields of `Case`. `settings` among them are what `--set` takes."""

    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)


_PLAIN = {"settings": ("model.attention=sdpa",)}
LADDER = (
    Rung("transformers and PEFT, padded", {"contender": "transformers"}),
    Rung("packed rows", {**_PLAIN, "loss": "full"}),
    Rung("+ labelled positions first", {**_PLAIN, "loss": "selected"}),
    Rung("+ loss in pieces", _PLAIN),
    Rung("+ packed attention: as shipped"),
    Rung("+ compiled layers", {"settings": ("training.compile=true",)}),
)
"""To add a rung, add a line: settings it turns off are listed in every rung above it."""
