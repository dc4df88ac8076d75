"""Workers as the parent sees them: started once, asked, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_END_SECONDS = 60.0


class WorkerFailed(Exception):
    """A worker ended instead of answering; the message is the last thing it said."""


class Process:
    """A worker in a process of its own. Use as a context."""

    def __init__(self, python: str, setup: Path, way: str, *, threads: int) -> None:
        self._log = setup.with_name(f"{way}.log")
        with self._log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.train.worker", str(setup), way],
                cwd=ROOT,
                env=_environment(threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Process:
        try:
            self.versions = self.answer()["versions"]
        except WorkerFailed:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def ask(self, do: str, choice: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a command and wait for its answer. Raises: WorkerFailed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, "choice": choice}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer. Raises: WorkerFailed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failure(self) -> WorkerFailed:
        code = self._process.wait()
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return WorkerFailed(f"exit code {code}" + (f": {lines[-1]}" if lines else ""))

    def _end(self) -> None:
        """Close its stdin, which ends it; then insist."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _environment(threads: int) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
