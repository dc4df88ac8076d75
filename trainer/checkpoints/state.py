"""state.json: where a run stands, but for tensors. Torch-free."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.errors import EnvironmentProblem

FILE_NAME = "state.json"
FORMAT = 1


@dataclass(frozen=True)
class RunState:
    """What the next attempt needs to know; every count is of the whole run, all attempts."""

    kind: Literal["portable", "sharded"]
    step: int
    """Optimizer steps done, and with it the position in the data."""
    epoch: float
    tokens: int
    training_seconds: float
    loss_total: float
    """Sum of the losses of all logged steps."""
    last_logged_step: int
    scheduler_steps: int
    """Fewer than `step` when fp16 overflows skipped some."""
    loss_scale: dict[str, float] | None
    """fp16's gradient scaler."""
    evaluation_pending: bool
    """The evaluation due after `step` was cut short, and is still to be done."""
    best_step: int | None
    callbacks: dict[str, dict[str, Any]]
    world_size: int
    engine: str
    """`one process`, `ddp`, `zero2` ..."""
    precision: str
    saved: float
    """Seconds since 1970, for people; nothing is decided by it."""
    format: int = field(default=FORMAT)

    def holds_weights(self, *, is_lora: bool) -> bool:
        """Whether the checkpoint holds weights that other programs load."""
        return self.kind == "portable" or is_lora


def write_state(folder: Path, state: RunState) -> None:
    text = json.dumps(dataclasses.asdict(state), indent=2, allow_nan=False) + "\n"
    (folder / FILE_NAME).write_text(text, encoding="utf-8")


def read_state(checkpoint: Path) -> RunState:
    """Read the state of a checkpoint.

    Raises: EnvironmentProblem when it is not one this version understands.
    """
    path = checkpoint / FILE_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}, this version reads {FORMAT}")
        return RunState(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EnvironmentProblem(
            f"{path} cannot be used: {error}",
            rule="a checkpoint is read by the version that wrote it, or a newer one",
            fix="use that version, or resume from another checkpoint",
        ) from error
