"""A run directory as values: finished, failed, killed and running ones. Read only."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import ConfigError
from trainer.report.values import Json, as_text
from trainer.run_directory import RunDirectory, read_lines


@dataclass(frozen=True)
class RunRecord:
    """What one run directory holds; a part that is not there (yet) is empty."""

    path: Path
    config: Json
    status: Json
    summary: Json
    plan: Json
    data: Json
    metrics: tuple[Json, ...]
    samples: tuple[Json, ...]
    safety: tuple[Json, ...]
    advice: tuple[Json, ...]
    is_gone: bool = False
    """It says that it runs, on this machine, and its process does not exist."""

    @property
    def name(self) -> str:
        return self.path.resolve().name or str(self.path)

    @property
    def state(self) -> str:
        if self.is_gone:
            return "ended without a word"
        return as_text(self.status.get("state")) or "unknown"


def read_run(path: Path) -> RunRecord:
    """Read a run directory.

    Raises: ConfigError when the folder is no run, or one of its files is damaged.
    """
    run = RunDirectory(path)
    files = (run.resolved_config, run.status, run.summary, run.metrics)
    if not any(file.is_file() for file in files):
        what = "no such folder" if not path.exists() else "this folder holds no run"
        raise ConfigError(
            f"{path}: {what}",
            rule=f"a run directory has {', '.join(file.name for file in files)} or one of them",
            fix="name the output_dir of a run",
        )
    return RunRecord(
        path=path,
        config=_read_object(run.resolved_config),
        status=run.read_status(),
        summary=_read_object(run.summary),
        plan=_read_object(run.plan),
        data=_read_object(run.data_report),
        metrics=_read_lines(run.metrics),
        samples=_read_lines(run.samples),
        safety=_read_lines(run.safety),
        advice=_read_lines(run.advice),
        is_gone=_is_gone(run),
    )


def _is_gone(run: RunDirectory) -> bool:
    status = run.read_status()
    is_here = status.get("state") == "running" and status.get("host") == socket.gethostname()
    return is_here and run.process_at_work() is None


def _read_object(path: Path) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return content if isinstance(content, dict) else {}


def _read_lines(path: Path) -> tuple[Json, ...]:
    """Return the objects of a JSON lines file; a running process may have written half of one."""
    try:
        return tuple(read_lines(path))
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path}: cannot be read: {error}",
        rule="files of a run are JSON as training wrote them",
        fix="leave this run out, or restore the file",
    )
