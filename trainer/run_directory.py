"""The run directory: where each file of a run lives, and how small files are written."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError, EnvironmentProblem


@dataclass(frozen=True)
class RunDirectory:
    """Names of everything a run leaves behind; README describes each."""

    path: Path

    @property
    def resolved_config(self) -> Path:
        return self.path / "resolved.json"

    @property
    def data_report(self) -> Path:
        return self.path / "data_report.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best_model(self) -> Path:
        return self.path / "best_model"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """Final weights of a full fine-tuning."""
        return self.path / "model"

    @property
    def merged(self) -> Path:
        return self.path / "merged"

    def claim(self) -> None:
        """Create the directory for a new run.

        Ranks: rank 0 only.
        Raises: ConfigError when a run has been here; EnvironmentProblem when it cannot be made.
        """
        if self.status.exists():
            raise ConfigError(
                f"{self.path} already holds a run",
                rule="a run directory is never overwritten",
                fix="choose another output_dir (--set output_dir=...), or move that folder away",
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentProblem(
                f"the run directory {self.path} cannot be created: {error.strerror}",
                rule="output_dir must be a folder this user may write",
                fix="choose another output_dir, or change its permissions",
            ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file so that a reader sees the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
