"""Runs side by side, from what they left on disk: finished, failed and running ones. Read only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.report.read import RunRecord
from trainer.report.values import flatten

Value = Any
Json = dict[str, Any]
# Where a run writes says nothing about how it learns.
_NOT_SETTINGS = {"output_dir", "tracking.run_name"}


@dataclass(frozen=True)
class Comparison:
    """One column per run; rows of results, and of settings that differ."""

    runs: tuple[str, ...]
    results: dict[str, tuple[Value, ...]]
    settings: dict[str, tuple[Value, ...]]


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


def to_results(record: RunRecord) -> dict[str, Value]:
    """Return what a run achieved so far, by the name of its row. PURE."""
    summary, metrics = record.summary, record.metrics
    results: dict[str, Value] = {"state": record.state}
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
