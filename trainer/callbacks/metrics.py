"""metrics.jsonl: every number the run logged, one JSON object a line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.run_directory import append_line


class MetricsCallback(TrainerCallback):  # type: ignore[misc]
    """Appends each logged line. Ranks: add it on rank 0 only."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        line = {"step": state.global_step, "time": round(time.time(), 3), **logs}
        append_line(self.path, line)
