"""Runs side by side, from what they left on disk: finished, failed and running ones. Read only."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.run_directory import RunDirectory

Value = Any
Json = dict[str, Any]
# Where a run writes says nothing about how it learns.
_NOT_SETTINGS = {"output_dir", "tracking.run_name"}


@dataclass(frozen=True)
class RunRecord:
    """What one run directory holds; a part that is not there (yet) is empty."""

    path: Path
    config: Json
    summary: Json
    status: Json
    plan: Json
    metrics: tuple[Json, ...]
    is_gone: bool = False
    """It says that it runs, on this machine, and its process does not exist."""


@dataclass(frozen=True)
class Comparison:
    """One column per run; rows of results, and of settings that differ."""

    runs: tuple[str, ...]
    results: dict[str, tuple[Value, ...]]
    settings: dict[str, tuple[Value, ...]]


def read_run(path: Path) -> RunRecord:
    """Read a run directory.

    Raises: ConfigError when the folder is no run.
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
    status = run.read_status()
    return RunRecord(
        path=path,
        config=_read_object(run.resolved_config),
        summary=_read_object(run.summary),
        status=status,
        plan=_read_object(path / "plan.json"),
        metrics=tuple(_read_lines(run.metrics)),
        is_gone=_is_gone(run, status),
    )


def _is_gone(run: RunDirectory, status: Json) -> bool:
    is_here = status.get("state") == "running" and status.get("host") == socket.gethostname()
    return is_here and run.process_at_work() is None


def compare(records: Sequence[RunRecord]) -> Comparison:
    """Put runs beside each other. PURE."""
    facts = [to_results(record) for record in records]
    names = list(dict.fromkeys(name for fact in facts for name in fact))
    settings = [flatten(record.config) for record in records]
    keys = dict.fromkeys(key for setting in settings for key in setting)
    differing = {
        key: tuple(setting.get(key) for setting in settings)
        for key in keys
        if key not in _NOT_SETTINGS and _differ(settings, key)
    }
    return Comparison(
        runs=tuple(str(record.path) for record in records),
        results={name: tuple(fact.get(name) for fact in facts) for name in names},
        settings=differing,
    )


def _differ(settings: Sequence[Mapping[str, Value]], key: str) -> bool:
    absent = object()
    first, *others = [setting.get(key, absent) for setting in settings if setting]
    return any(other != first for other in others)


def flatten(config: Mapping[str, Value], prefix: str = "") -> dict[str, Value]:
    """Return `section.key` -> value; lists stay whole. PURE."""
    flat: dict[str, Value] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def to_results(record: RunRecord) -> dict[str, Value]:
    """Return what a run achieved so far, by the name of its row. PURE."""
    summary, metrics = record.summary, record.metrics
    state = record.status.get("state", "unknown")
    results: dict[str, Value] = {"state": "ended without a word" if record.is_gone else state}
    if record.status.get("message"):
        results["error"] = f"{record.status.get('error', '')}: {record.status['message']}"
    before, after = (_section(summary, name) for name in ("before", "after"))
    results["steps"] = summary.get("steps", max(_numbers(metrics, "step"), default=None))
    results["training loss (last)"] = _last(metrics, "loss")
    results["training loss (mean)"] = summary.get("train_loss", _last(metrics, "train_loss"))
    for split, logged in (("validation", "eval_loss"), ("test", "test_loss")):
        losses = _numbers(metrics, logged)
        results[f"{split} loss before"] = before.get(split, _at_start(metrics, logged))
        results[f"{split} loss after"] = after.get(split)
        if split == "validation":  # what training chooses by
            results["validation loss best"] = min(losses, default=None)
    results["best step"] = summary.get("best_step", _best_step(metrics))
    results["stopped early"] = summary.get("stopped_early")
    results["examples"] = summary.get("examples")
    results["tokens"] = summary.get("tokens", _last(metrics, "tokens"))
    results["tokens/s"] = summary.get("tokens_per_second", _mean(metrics, "tokens_per_second"))
    results["peak GPU memory (GiB)"] = max(_numbers(metrics, "gpu_memory_peak_gib"), default=None)
    results["peak host memory (GiB)"] = max(_numbers(metrics, "host_memory_gib"), default=None)
    seconds = summary.get("training_seconds", summary.get("runtime_seconds"))
    results["training time (s)"] = seconds
    times = _numbers(metrics, "time")
    results["time since first log (s)"] = max(times) - min(times) if times else None
    results |= {f"plan: {key}": value for key, value in _plan_facts(record.plan).items()}
    return {name: value for name, value in results.items() if value is not None}


def _section(values: Json, name: str) -> Json:
    section = values.get(name)
    return section if isinstance(section, dict) else {}


def _plan_facts(plan: Json) -> dict[str, Value]:
    """Return the plan's plain values; its tables and reasons are too long to stand in columns."""
    return {key: value for key, value in plan.items() if isinstance(value, (str, int, float))}


def _numbers(metrics: Iterable[Json], name: str) -> list[float]:
    found = [line[name] for line in metrics if isinstance(line.get(name), (int, float))]
    return [value for value in found if math.isfinite(value)]


def _last(metrics: Sequence[Json], name: str) -> float | None:
    numbers = _numbers(metrics, name)
    return numbers[-1] if numbers else None


def _mean(metrics: Sequence[Json], name: str) -> float | None:
    numbers = _numbers(metrics, name)
    return sum(numbers) / len(numbers) if numbers else None


def _at_start(metrics: Sequence[Json], name: str) -> float | None:
    return next((line[name] for line in metrics if line.get("step") == 0 and name in line), None)


def _best_step(metrics: Sequence[Json]) -> int | None:
    measured = [line for line in metrics if line.get("step") and _numbers([line], "eval_loss")]
    return min(measured, key=lambda line: line["eval_loss"])["step"] if measured else None


def _read_object(path: Path) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read: {error}",
            rule="files of a run are JSON as training wrote them",
            fix="leave this run out, or restore the file",
        ) from None
    return content if isinstance(content, dict) else {}


def _read_lines(path: Path) -> Iterable[Json]:
    """Yield the metrics lines; a running process may have written half of the last one."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value
