"""What a worker process is told, as one file: paths and numbers only."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.train.ways import Rows

LORA_RANK, LORA_ALPHA = 16, 32
LEARNING_RATE, MAX_GRAD_NORM, SEED = 1e-4, 1.0, 42
ENDLESS = 1_000_000  # steps; a run ends when it is told to


@dataclass(frozen=True)
class Setup:
    """One profile's files."""

    model: str
    folder: str
    """Of this profile, for scratch files."""
    rows: Rows
    examples: str
    """The rows of a round, as `rows.save_examples` writes them."""
    step_examples: str
    """The rows of the one step that gradients are compared on."""
    config: str
    """The product's resolved config for the rows of a round."""
    step_config: str
    """The same for the one step."""

    @property
    def reference(self) -> Path:
        """Loss and gradients of the reference."""
        return Path(self.folder) / "reference.pt"

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Setup:
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "rows": Rows(**values["rows"])})
