"""The run directory: where each file of a run lives, and how small files are written."""

from __future__ import annotations

import json
import shlex
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from trainer.errors import ConfigError, EnvironmentProblem


@dataclass(frozen=True)
class RunDirectory:
    """Names of everything a run leaves behind; README describes each."""

    path: Path

    @property
    def resolved_config(self) -> Path:
        return self.path / "resolved.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

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

    def read_status(self) -> dict[str, Any]:
        """Return what `status.json` says; empty when there is none yet."""
        try:
            content = json.loads(self.status.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return {}
        return content if isinstance(content, dict) else {}

    def has_ended_before_training(self) -> bool:
        """Tell a run that ended before its first logged step: there is nothing to lose in it."""
        status = self.read_status()
        ended = status.get("state") in ("failed", "interrupted") or (
            status.get("host") == socket.gethostname() and not psutil.pid_exists(status["pid"])
        )
        return ended and not self.metrics.exists()

    def refuse_run(self, marker: Path) -> None:
        """Refuse a directory that holds results, or whose `marker` file says that a run is here.

        Raises: ConfigError.
        """
        results = (self.adapter, self.model, self.merged, self.best_model, self.metrics)
        found = next((path for path in results if path.exists()), None)
        if found is not None or (marker.exists() and not self.has_ended_before_training()):
            what = f" ({found.name} is there)" if found is not None else ""
            other = shlex.quote(f"output_dir={self.path}-2")
            raise ConfigError(
                f"output_dir {self.path} already holds a run{what}",
                rule="a run, or a folder it would write, is never overwritten",
                fix=f"choose another one (--set {other}), or move this one away",
            )

    def claim(self) -> None:
        """Create the directory for a new run.

        Ranks: rank 0 only.
        Raises: ConfigError when a run has been here; EnvironmentProblem when it cannot be made.
        """
        self.refuse_run(self.status)
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
    # Not the process id: nodes that share a file system may share one.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
