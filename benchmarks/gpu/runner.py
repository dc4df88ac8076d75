"""Runs measurements one after another, each in its own process, inside a time budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu.jobs import Job, Result, run_job

ROOT = Path(__file__).resolve().parents[2]
_SHORTEST_SECONDS = 15.0  # a process cannot start and measure in less
_GRACE_SECONDS = 30.0  # a measurement may run over its part's share, never over the whole


class Runner:
    """Keeps every job with its result. `isolated`: in a process of its own (else here)."""

    def __init__(self, seconds: float, *, isolated: bool) -> None:
        self.isolated = isolated
        self.records: list[dict[str, Any]] = []
        self._deadline = self._part_deadline = time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        """Of the whole budget."""
        return self._deadline - time.monotonic()

    @property
    def part_seconds_left(self) -> float:
        return self._part_deadline - time.monotonic()

    def begin_part(self, share: float) -> None:
        """Give the next part this share of what is left."""
        self._part_deadline = time.monotonic() + share * self.seconds_left

    def run(self, job: Job) -> Result:
        """Measure, or say why not: status `ok`, `skipped`, `no memory` or `failed`, and reason."""
        if self.isolated and self.part_seconds_left < _SHORTEST_SECONDS:
            result: Result = {"status": "skipped", "reason": "no time left"}
        elif self.isolated:
            limit = min(self.part_seconds_left + _GRACE_SECONDS, self.seconds_left)
            result = run_isolated(job, limit)
        else:
            result = run_job(job)
        self.records.append({"job": job, "load": os.getloadavg()[0], "result": result})
        return result

    def first_that_fits(self, jobs: Iterable[Job]) -> tuple[Job, Result]:
        """Run the first job that does not end for lack of memory."""
        for job in jobs:
            result = self.run(job)
            if result["status"] != "no memory":
                break
        return job, result


def run_isolated(job: Job, seconds: float) -> Result:
    """Run a job in a new process and end it when its time is over."""
    with tempfile.TemporaryDirectory() as folder:
        given, answer, log = (Path(folder) / name for name in ("job", "answer", "log"))
        given.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.gpu.jobs", str(given), str(answer)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": _python_path()}
        with log.open("w", encoding="utf-8") as output:
            try:
                code = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=seconds,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                return {"status": "skipped", "reason": f"not done after {seconds:.0f} s"}
        if code == 0:
            result: Result = json.loads(answer.read_text(encoding="utf-8"))
            return result
        said = log.read_text(encoding="utf-8", errors="replace").strip()
        last = said.splitlines()[-1] if said else f"exit code {code}"
        return {"status": "failed", "reason": last, "log": said[-4000:]}


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
