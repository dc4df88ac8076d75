"""The top of a page: which run, how it stands, what it achieved. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.report import format as form
from trainer.report.curves import measured_memory, peak_memory_gib
from trainer.report.read import RunRecord
from trainer.report.series import finite_values, read_curve, read_series
from trainer.report.values import as_finite, as_object, as_text

_TONES = {"completed": "good", "running": "busy", "preparing": "busy", "unknown": "quiet"}
_MAX_ERROR = 4000
_METRICS = {"validation": "eval_loss", "test": "test_loss"}


@dataclass(frozen=True)
class Tile:
    """One number of the overview."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class LossPair:
    """One split's loss before and after training."""

    split: str
    before: float | None
    after: float

    @property
    def change(self) -> str:
        if not self.before or self.before <= 0:
            return ""
        sign = "+" if self.after > self.before else "\N{MINUS SIGN}"
        return f"{sign}{abs(self.after / self.before - 1):.0%}"


@dataclass(frozen=True)
class Head:
    """What a page begins with."""

    name: str
    state: str
    tone: str
    model: str
    losses: tuple[LossPair, ...]
    remarks: tuple[str, ...]
    tiles: tuple[Tile, ...]
    error: str = ""
    remedy: str = ""


def make_head(run: RunRecord) -> Head:
    """Return the top of a run's page."""
    status = run.status
    message = as_text(status.get("message"))
    error = ": ".join(part for part in (as_text(status.get("error")), message) if part)
    return Head(
        name=run.name,
        state=run.state,
        tone=_TONES.get(run.state, "bad"),
        model=model_name(run),
        losses=loss_pairs(run),
        remarks=_remarks(run),
        tiles=_tiles(run),
        error=form.cut(error, _MAX_ERROR),
        remedy=form.cut(as_text(status.get("remedy")), _MAX_ERROR),
    )


def model_name(run: RunRecord) -> str:
    """Return the base model: a Hub id, or the last part of a folder's path."""
    name = as_text(as_object(run.config.get("model")).get("name"))
    return name if name.count("/") <= 1 and not name.startswith("/") else name.rsplit("/", 1)[-1]


def loss_pairs(run: RunRecord) -> tuple[LossPair, ...]:
    """Return the losses before and after; of a run without its summary the first and newest."""
    before, after = (as_object(run.summary.get(name)) for name in ("before", "after"))
    pairs = []
    for split, metric in _METRICS.items():
        logged = read_series(run.metrics, metric)
        at_start = finite_values(point for point in logged if point[0] == 0)
        later = finite_values(point for point in logged if point[0] > 0)
        first, last = as_finite(before.get(split)), as_finite(after.get(split))
        first = at_start[0] if first is None and at_start else first
        last = later[-1] if last is None and later else last
        if last is not None:
            pairs.append(LossPair(split, first, last))
    return tuple(pairs) or _training_pair(run)


def _training_pair(run: RunRecord) -> tuple[LossPair, ...]:
    values = finite_values(read_series(run.metrics, "loss"))
    return (LossPair("training", values[0], values[-1]),) if values else ()


def last_step(run: RunRecord) -> int | None:
    """Return how many steps were taken, as far as is known."""
    done = as_finite(run.summary.get("steps"))
    steps = [as_finite(line.get("step")) for line in run.metrics]
    newest = done if done is not None else max((s for s in steps if s is not None), default=None)
    return None if newest is None else int(newest)


def best_step(run: RunRecord) -> int | None:
    """Return the step of the lowest validation loss."""
    best = as_finite(run.summary.get("best_step"))
    if best is not None:
        return int(best)
    points = read_curve(run.metrics, "eval_loss")
    values = [point for point in points if point[0] > 0 and point[1] == point[1]]  # NaN differs
    return int(min(values, key=lambda point: point[1])[0]) if values else None


def training_seconds(run: RunRecord) -> float | None:
    """Return the time spent on steps; of a run without a summary, since its first log."""
    seconds = as_finite(run.summary.get("training_seconds"))
    if seconds is not None:
        return seconds
    times = [time for line in run.metrics if (time := as_finite(line.get("time"))) is not None]
    return max(times) - min(times) if len(times) > 1 else None


def tokens_per_second(run: RunRecord) -> float | None:
    """Return the rate of the whole run; without a summary the mean of the logged ones."""
    rate = as_finite(run.summary.get("tokens_per_second"))
    values = finite_values(read_series(run.metrics, "tokens_per_second"))
    return rate if rate is not None else sum(values) / len(values) if values else None


def last_value(run: RunRecord, metric: str, lines: str, key: str) -> float | None:
    """Return the newest of a number that is in the metrics, or in a file of its own."""
    own = run.samples if lines == "samples" else run.safety
    points = read_series(run.metrics, metric) or read_series(own, key)
    return next(iter(reversed(finite_values(points))), None)


def quality(run: RunRecord) -> float | None:
    """Return the newest mean quality of the answers, 0 to 1."""
    return last_value(run, "eval_quality", "samples", "quality")


def compliance_rate(run: RunRecord) -> float | None:
    """Return the newest share of safe answers."""
    return last_value(run, "eval_safety_compliance_rate", "safety", "compliance_rate")


def _remarks(run: RunRecord) -> tuple[str, ...]:
    best, last = best_step(run), last_step(run)
    parts = []
    if best is not None and best != last:
        parts.append(f"lowest validation loss at step {best:,}")
    if run.summary.get("stopped_early") is True:
        parts.append("stopped early, the validation loss no longer fell")
    return tuple(parts)


def _tiles(run: RunRecord) -> tuple[Tile, ...]:
    steps, seconds, rate = last_step(run), training_seconds(run), tokens_per_second(run)
    peak, answers, safe = peak_memory_gib(run), quality(run), compliance_rate(run)
    examples = as_finite(run.summary.get("examples"))
    memory = "Peak host memory" if measured_memory(run) == "host_memory_gib" else "Peak GPU memory"
    tiles = [
        steps
        and Tile("Steps", f"{steps:,}", "" if examples is None else f"{examples:,.0f} examples"),
        seconds and Tile("Time", form.duration(seconds)),
        rate and Tile("Throughput", form.rate(rate), "tokens/s"),
        peak and Tile(memory, f"{peak:.2f}", "GiB"),
        None if answers is None else Tile("Answer quality", f"{answers:.2f}", "of 1"),
        None if safe is None else Tile("Safe answers", f"{safe:.0%}"),
    ]
    return tuple(tile for tile in tiles if tile)
