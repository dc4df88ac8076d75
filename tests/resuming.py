"""Runs that are cut at a checkpoint, as a kill right after it would leave them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.commands import read_json, read_metrics

# What a later attempt measures anew, or that says when.
_OF_THE_CLOCK = {
    "time",
    "tokens_per_second",
    "labelled_tokens_per_second",
    "tflops_per_second",
    "mfu",
    "host_memory_gib",
}


def cut_at(run: Path, step: int, new: Path) -> Path:
    """Copy a run as it was when it had just saved `step`; return the copy."""
    shutil.copytree(run, new, symlinks=True)
    for checkpoint in (new / "checkpoints").glob("step-*"):
        if int(checkpoint.name.partition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    for name in ("adapter", "model", "best_model", "summary.json"):
        path = new / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    status = {"state": "running", "pid": 2**22 + 1, "host": "elsewhere", "started": 0.0}
    (new / "status.json").write_text(json.dumps(status), encoding="utf-8")
    return new


def logged(run: Path) -> list[dict[str, Any]]:
    """Return every line of metrics.jsonl, without what the clock decides."""
    return [
        {
            name: value
            for name, value in line.items()
            if name not in _OF_THE_CLOCK and not name.endswith(("_per_second", "runtime"))
        }
        for line in read_metrics(run)
    ]


def same_tensors(first: Path, second: Path) -> bool:
    """Tell whether two safetensors files hold the same bytes under the same names."""
    one, other = load_file(first), load_file(second)
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].numpy().tobytes() == other[name].numpy().tobytes()
        for name in one
    )


def require_same_run(expected: Path, got: Path) -> None:
    """Assert that two runs ended with the same adapter, losses, and results, bit for bit."""
    assert logged(got) == logged(expected)
    for name in ("samples.jsonl", "safety.jsonl", "advice.jsonl"):
        told = [run / name for run in (expected, got) if (run / name).exists()]
        assert len(told) in (0, 2)
        assert len({path.read_text(encoding="utf-8") for path in told}) <= 1, name
    weights = "adapter/adapter_model.safetensors"
    assert same_tensors(got / weights, expected / weights)
    results = [read_json(run / "summary.json") for run in (expected, got)]
    for result in results:
        for name in [n for n in result if n.endswith(("seconds", "_per_second"))]:
            del result[name]
    assert results[0] == results[1]
