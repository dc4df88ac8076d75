"""Run the command line the way a user does: as its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

EXAMPLE_DATA = Path(__file__).parent.parent / "examples" / "data"


def run(
    *arguments: str | Path, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` and return what it printed."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        check=False,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def rankzero(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `rankzero ARGUMENTS`."""
    return run("-m", "launcher", *arguments, **environment)


def write_config(path: Path, model: Path, output: Path, /, **sections: Any) -> Path:
    """Write a small run config on the medical questions; `sections` are merged over it."""
    config: dict[str, Any] = {
        "model": {"name": str(model)},
        "data": {
            "train": str(EXAMPLE_DATA / "medical_qa.jsonl"),
            "validation_size": 16,
            "test_size": 16,
            "max_length": 512,
        },
        "training": {
            "global_batch_size": 8,
            "max_steps": 6,
            "learning_rate": 1e-2,
            "logging_steps": 1,
        },
        "lora": {"dropout": 0},
        "evaluation": {"every_steps": 2},
        "output_dir": str(output),
    }
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values} if isinstance(values, dict) else values
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_metrics(run_directory: Path) -> list[dict[str, Any]]:
    lines = (run_directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def training_losses(run_directory: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run_directory) if "loss" in line]
