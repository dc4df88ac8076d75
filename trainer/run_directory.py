"""The run directory: where each file of a run lives, and how small files are written."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from trainer.errors import ConfigError, EnvironmentProblem

_SAME_PROCESS_SECONDS = 2.0
"""Two readings of when a process was created differ when the clock was set in between."""


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
    def last_save(self) -> Path:
        """How long the newest checkpoint took to write."""
        return self.path / "last_save.json"

    @property
    def contract(self) -> Path:
        """What must stay the same for the run to go on."""
        return self.path / "contract.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def advice(self) -> Path:
        return self.path / "advice.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def safety(self) -> Path:
        return self.path / "safety.jsonl"

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

    def process_at_work(self) -> psutil.Process | None:
        """Return the process on this machine that prepares or trains this run now, if one does.

        The launcher of the process that asks is none.
        """
        status = self.read_status()
        if (
            status.get("state") not in ("preparing", "running")
            or status.get("host") != socket.gethostname()
        ):
            return None
        process = find_process(status.get("pid"), status.get("created"))
        return None if process in psutil.Process().parents() else process

    def has_ended_before_training(self) -> bool:
        """Tell a run that ended before its first logged step: there is nothing to lose in it."""
        status = self.read_status()
        ended = status.get("state") in ("failed", "interrupted") or (
            status.get("host") == socket.gethostname() and self.process_at_work() is None
        )
        return ended and not self.metrics.exists()

    def refuse(self, resume: str, *, marker: Path) -> None:
        """Refuse a directory that a run may neither begin in nor go on in.

        resume: `never` begins, anything else goes on with the run that is here, if one is.
        marker: the file that says that a run is here.

        Raises: ConfigError.
        """
        process = self.process_at_work()
        if process is not None:
            raise self.in_progress(f"process {process.pid}")
        results = (self.adapter, self.model, self.merged, self.best_model, self.metrics)
        found = next((path for path in results if path.exists()), None)
        has_saved = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        has_run = has_saved or (marker.exists() and not self.has_ended_before_training())
        is_foreign = found is not None and not self.resolved_config.exists()
        if not is_foreign and (resume != "never" or not (found or has_run)):
            return
        what = f" ({found.name} is there)" if found is not None else ""
        goes_on = "" if is_foreign else "go on with --resume auto, "
        other = shlex.quote(f"output_dir={self.path}-2")
        raise ConfigError(
            f"output_dir {self.path} already holds a run{what}",
            rule="a run, or a folder it would write, is never overwritten",
            fix=f"{goes_on}choose another one (--set {other}), or move this one away",
        )

    def in_progress(self, who: str) -> ConfigError:
        """Return the error for a run that somebody is working on."""
        return ConfigError(
            f"the run in {self.path} is in progress ({who})",
            rule="one launcher at a time works in a run directory",
            fix="wait for it to end, or stop it",
        )

    def gone(self) -> EnvironmentProblem:
        """Return the error for a run whose directory was taken away under it."""
        return EnvironmentProblem(
            f"the run directory {self.path} is gone",
            rule="a run writes into the folder it began in, until its end",
            fix="bring the folder back to go on from its newest checkpoint, or start anew",
        )

    def claim(self, *, resume: str = "auto") -> None:
        """Create the directory for a run that begins or goes on.

        Ranks: rank 0 only.
        Raises: ConfigError, as `refuse`; EnvironmentProblem when it cannot be made.
        """
        self.refuse(resume, marker=self.status)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentProblem(
                f"the run directory {self.path} cannot be created: {error.strerror}",
                rule="output_dir must be a folder this user may write",
                fix="choose another output_dir, or change its permissions",
            ) from error


def find_process(pid: object, created: object) -> psutil.Process | None:
    """Return the process that had this pid then; None once it is gone, its pid reused or not.

    A restarted container gives the same pids again.
    """
    if not isinstance(pid, int) or not isinstance(created, (int, float)):
        return None
    try:
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - created) < _SAME_PROCESS_SECONDS
        is_alive = is_same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError):  # ValueError: a pid below 0
        return None
    return process if is_alive else None


def keep_lines(path: Path, choose: Callable[[Iterable[dict[str, Any]]], Iterable[bool]]) -> None:
    """Keep the chosen lines of a JSON lines file; one that a kill cut short goes."""
    if not path.exists():
        return
    lines = list(_parsed_lines(path))
    chosen = choose(value for _, value in lines)
    kept = [text for (text, _), is_kept in zip(lines, chosen, strict=True) if is_kept]
    _replace(path, "".join(f"{text}\n" for text in kept))


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Add an object to a JSON lines file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON lines file that may not be there; one cut short is left out.

    Raises: OSError when it is there and cannot be read.
    """
    return [value for _, value in _parsed_lines(path)]


def _parsed_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        return
    # Not splitlines: an answer may hold other line separators, such as U+2028, unescaped.
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError):
            value = json.loads(text)
            if isinstance(value, dict):
                yield text, value


def write_last_word(path: Path, value: Any) -> None:
    """Write as `write_json` does; on a full disk over the file that is there, if it has the room.

    Raises: OSError when that fails too; what is there then stays.
    """
    try:
        write_json(path, value)
    except OSError:
        data = _to_text(value).encode()
        if len(data) > path.stat().st_blocks * 512:
            raise
        with path.open("r+b", buffering=0) as file:
            file.write(data)
            file.truncate()


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file so that a reader sees the old one or the new one, never a part."""
    _replace(path, _to_text(value))


def _to_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _replace(path: Path, text: str) -> None:
    # Not the process id: nodes that share a file system may share one.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
