"""What one contender is asked to train, in a form that travels to a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.rows import RowSpec

if TYPE_CHECKING:
    from trainer.loss import LossWay

RANK = 16  # of the adapters, on all linear layers but the head; alpha is twice that
ALPHA = 32


@dataclass(frozen=True)
class Case:
    """One training run. `shape` holds the values of a config.json."""

    contender: str
    shape: Mapping[str, Any]
    rows: RowSpec
    device: str
    micro_batch_tokens: int  # of a padding-free row, where rows are joined
    examples_per_step: int
    micro_batch_examples: int = 8  # where rows are padded
    checkpointing: bool = False
    precision: str = "bf16"
    quantization: str = "none"
    warm_up: int = 3
    steps: int = 20
    seconds: float = 20.0  # of measured steps; fewer are taken when they last longer
    memory_gib: float | None = None  # what the card is to look like
    settings: tuple[str, ...] = ()  # of ours, as `--set` takes them
    loss: LossWay | None = None  # of ours; None as shipped

    @property
    def num_rows(self) -> int:
        """Enough for every step, with some to spare for packers that take more at a time."""
        return int((self.warm_up + self.steps + 1) * self.examples_per_step * 1.3)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Case:
        rows, settings = RowSpec(**values["rows"]), tuple(values["settings"])
        return cls(**{**values, "rows": rows, "settings": settings})

    def with_(self, **changes: Any) -> Case:
        return replace(self, **changes)
