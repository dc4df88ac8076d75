"""Which curves a run has: its charts as values, before anything is drawn. PURE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.report import format as form
from trainer.report.read import RunRecord
from trainer.report.series import (
    Point,
    finite_values,
    newest_by_step,
    read_curve,
    read_series,
    smooth,
    thin,
)
from trainer.report.values import Json, as_finite, as_objects

_LOG_SCALE_FROM = 100.0
"""Largest over smallest value from which a linear axis hides the small ones."""


@dataclass(frozen=True)
class Line:
    """One curve."""

    name: str
    points: tuple[Point, ...]
    colour: int = 0
    """Number of the series in the palette."""
    has_markers: bool = False
    """For the few values of evaluations."""
    mean: tuple[Point, ...] = ()
    """The course of a long, noisy curve, which itself is then drawn faintly."""
    last: str = ""
    """Newest value, for the legend."""


@dataclass(frozen=True)
class Chart:
    """Curves over the same steps and in the same unit."""

    key: str
    title: str
    lines: tuple[Line, ...]
    unit: str = ""
    limit: tuple[str, float] | None = None
    """A level to compare with, and its name."""
    bounds: tuple[float | None, float | None] = (None, None)
    """Of the value axis, where they are known."""
    note: str = ""

    @property
    def is_log(self) -> bool:
        values = [value for line in self.lines for value in finite_values(line.points)]
        if self.key not in ("loss", "grad_norm") or not values or min(values) <= 0:
            return False
        return max(values) / min(values) >= _LOG_SCALE_FROM


def make_charts(run: RunRecord) -> tuple[Chart, ...]:
    """Return the charts there are numbers for, the losses first."""
    charts = (
        loss_chart(run),
        _chart(run, "learning_rate", "Learning rate", (("learning_rate", "newest"),)),
        throughput_chart(run),
        memory_chart(run),
        _chart(run, "grad_norm", "Gradient norm", (("grad_norm", "before clipping"),)),
        quality_chart(run),
        words_chart(run),
    )
    return tuple(chart for chart in charts if chart.lines)


def make_picture(run: RunRecord) -> tuple[Chart, ...]:
    """Return the charts of training_curves.png, at most four."""
    last = quality_chart(run)
    charts = (
        loss_chart(run),
        _chart(run, "learning_rate", "Learning rate", (("learning_rate", "newest"),)),
        memory_chart(run),
        last if last.lines else throughput_chart(run),
    )
    return tuple(chart for chart in charts if chart.lines)


def loss_chart(run: RunRecord) -> Chart:
    """Return training and validation loss together."""
    names = (("loss", "training"), ("eval_loss", "validation"))
    return _chart(run, "loss", "Loss", names)


def throughput_chart(run: RunRecord) -> Chart:
    """Return tokens a second, of all processes together."""
    names = (("tokens_per_second", "newest"),)
    return _chart(run, "throughput", "Throughput", names, unit="tokens/s", bounds=(0, None))


def memory_chart(run: RunRecord) -> Chart:
    """Return the memory the plan speaks of, GPU or host, and what it predicted."""
    key, predicted = measured_memory(run), predicted_peak_gib(run)
    is_host = key == "host_memory_gib"
    names = ((key, "process" if is_host else "peak"), *(() if is_host else _ALLOCATED))
    return _chart(
        run,
        "memory",
        "Host memory" if is_host else "GPU memory",
        names,
        unit="GiB",
        limit=None if predicted is None else ("predicted peak", predicted),
        bounds=(0, None),
    )


_ALLOCATED = (("gpu_memory_gib", "after the step"),)


def measured_memory(run: RunRecord) -> str:
    """Return the name of the metric that the plan's prediction is compared with."""
    for key in ("gpu_memory_peak_gib", "gpu_memory_gib"):
        if any(as_finite(line.get(key)) is not None for line in run.metrics):
            return key
    return "host_memory_gib"


def predicted_peak_gib(run: RunRecord) -> float | None:
    """Return the plan's peak of what was measured: a GPU's tensors, or the process on a CPU."""
    if measured_memory(run) != "host_memory_gib":
        return as_finite(run.plan.get("tensors_gib"))
    if run.plan.get("device") != "cpu":
        return None
    usage = as_objects(run.plan.get("usage"))
    return as_finite(usage[0].get("gib")) if usage else None


def peak_memory_gib(run: RunRecord) -> float | None:
    """Return the largest value measured, None when there is none."""
    return max(finite_values(read_series(run.metrics, measured_memory(run))), default=None)


def quality_chart(run: RunRecord) -> Chart:
    """Return quality of the answers and safety, all from 0 to 1."""
    names = (
        ("eval_quality", "quality"),
        ("eval_safety_compliance_rate", "safe answers"),
        ("eval_safety_average_score", "safety score"),
    )
    metrics = _with_files(run)
    return _chart(run, "quality", "Quality and safety", names, bounds=(0, 1), metrics=metrics)


def words_chart(run: RunRecord) -> Chart:
    """Return how long answers are."""
    names = (("eval_response_words", "mean"), ("eval_response_words_std", "deviation"))
    metrics = _with_files(run)
    title = "Answer length"
    return _chart(run, "words", title, names, unit="words", bounds=(0, None), metrics=metrics)


def _with_files(run: RunRecord) -> tuple[Json, ...]:
    """Return the metrics; from samples and safety checks what is not logged there."""
    names = {"quality": "eval_quality", "mean_words": "eval_response_words"}
    names |= {"std_words": "eval_response_words_std"}
    safety = {"compliance_rate": "eval_safety_compliance_rate"}
    safety |= {"average_score": "eval_safety_average_score"}
    added: list[Json] = []
    for lines, keys in ((run.samples, names), (run.safety, safety)):
        missing = {
            old: new for old, new in keys.items() if not any(new in line for line in run.metrics)
        }
        added += [
            {"step": step} | {new: line.get(old) for old, new in missing.items()}
            for step, line in sorted(newest_by_step(lines).items())
        ]
    return (*added, *run.metrics)


def _chart(
    run: RunRecord,
    key: str,
    title: str,
    names: Sequence[tuple[str, str]],
    *,
    unit: str = "",
    limit: tuple[str, float] | None = None,
    bounds: tuple[float | None, float | None] = (None, None),
    metrics: tuple[Json, ...] | None = None,
) -> Chart:
    lines, gaps = [], []
    known = run.metrics if metrics is None else metrics
    for number, (metric, name) in enumerate(names):
        points = read_curve(known, metric)
        values = finite_values(points)
        gaps += [step for step, value in points if math.isnan(value)]
        if not values:
            continue
        is_evaluation = metric.startswith("eval_")
        lines.append(
            Line(
                name,
                thin(points),
                colour=number,
                has_markers=is_evaluation and len(points) <= _MAX_MARKERS,
                mean=smooth(points) if metric in _NOISY else (),
                last=form.short(values[-1]),
            )
        )
    return Chart(key, title, tuple(lines), unit, limit, bounds, note=_gap_note(gaps))


_MAX_MARKERS = 60
_NOISY = ("loss", "grad_norm", "tokens_per_second")


def _gap_note(steps: Sequence[float]) -> str:
    if not steps:
        return ""
    times = "once" if len(steps) == 1 else f"{len(steps):,} times"
    return f"not finite {times}, first at step {min(steps):,.0f}"
