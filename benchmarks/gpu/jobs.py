"""One measurement in a process of its own: `python -m benchmarks.gpu.jobs JOB.json RESULT.json`.

A process that runs out of memory, hangs or lacks a package takes nothing with it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from trainer.entry import quiet_libraries
from trainer.errors import EnvironmentProblem

Job = Mapping[str, Any]
Result = dict[str, Any]

# Kind -> module with `measure(job, folder)`, loaded when asked for: each needs other packages.
_MODULES = {
    "ceilings": "ceilings",
    "parity": "parity",
    "ours": "ours",
    "theirs": "peers",
    "longest": "longest",
    "loss": "loss_operator",
}


def run_job(job: Job) -> Result:
    """Measure; what could not be measured comes back as a status and its reason."""
    torch = import_module("torch")
    started = time.perf_counter()
    try:
        _look_like(job.get("case", {}).get("memory_gib"), torch)
        with tempfile.TemporaryDirectory() as folder:
            module = import_module(f"benchmarks.gpu.{_MODULES[job['kind']]}")
            result = {"status": "ok", **module.measure(job, Path(folder))}
    except ModuleNotFoundError as error:
        result = {"status": "skipped", "reason": f"{error.name} is not installed"}
    except EnvironmentProblem as error:
        result = {"status": "skipped", "reason": str(error).partition("\n")[0]}
    except torch.OutOfMemoryError as error:
        result = {"status": "no memory", "reason": str(error).partition(". ")[0]}
    return {**result, "job_seconds": time.perf_counter() - started}


def _look_like(memory_gib: float | None, torch: Any) -> None:
    """Let the card seem to have no more memory than this."""
    if memory_gib is not None and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory / (1 << 30)
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gib / total))


def main(job: str, result: str) -> None:
    quiet_libraries()
    found = run_job(json.loads(Path(job).read_text(encoding="utf-8")))
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
