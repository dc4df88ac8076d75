"""Several runs beside each other: results, settings that differ, losses, last answers. PURE."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.report import format as form
from trainer.report import head
from trainer.report.answers import MAX_CHARACTERS, MAX_PROMPTS, Answer, last_answers
from trainer.report.curves import Chart, Line, measured_memory, peak_memory_gib
from trainer.report.read import RunRecord
from trainer.report.series import finite_values, read_curve, smooth, thin
from trainer.report.values import as_finite, flatten

# Where a run writes says nothing about how it learns.
_NOT_SETTINGS = {"output_dir", "tracking.run_name"}


@dataclass(frozen=True)
class Cell:
    """One value of a table, and whether it is the best of its row."""

    text: str
    is_best: bool = False


@dataclass(frozen=True)
class ComparedRow:
    """One name, and a cell for each run."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ComparedPrompt:
    """One prompt, and each run's newest answer."""

    text: str
    answers: tuple[Answer | None, ...]


@dataclass(frozen=True)
class ComparedRuns:
    """Everything on the page but the curves."""

    names: tuple[str, ...]
    states: tuple[tuple[str, str], ...]
    """State and tone of each run."""
    results: tuple[ComparedRow, ...]
    settings: tuple[ComparedRow, ...]
    prompts: tuple[ComparedPrompt, ...]
    note: str


def make_comparison(runs: Sequence[RunRecord]) -> ComparedRuns:
    """Return what the page of several runs says."""
    heads = [head.make_head(run) for run in runs]
    prompts, note = _prompts(runs)
    return ComparedRuns(
        names=unique_names(runs),
        states=tuple((one.state, one.tone) for one in heads),
        results=_results(runs),
        settings=_settings(runs),
        prompts=prompts,
        note=note,
    )


def unique_names(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Return the runs' names; those that several have with the folder above."""
    num_of = Counter(run.name for run in runs)
    names = [
        run.name if num_of[run.name] == 1 else f"{run.path.resolve().parent.name}/{run.name}"
        for run in runs
    ]
    again = Counter(names)
    return tuple(
        name if again[name] == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)
    )


def compare_losses(runs: Sequence[RunRecord], names: Sequence[str]) -> tuple[Chart, ...]:
    """Return the validation losses of all runs in one chart, and the training losses in another."""
    charts = (
        _losses(runs, names, "eval_loss", "Validation loss"),
        _losses(runs, names, "loss", "Training loss"),
    )
    return tuple(chart for chart in charts if chart.lines)


def _losses(runs: Sequence[RunRecord], names: Sequence[str], metric: str, title: str) -> Chart:
    lines = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        points = read_curve(run.metrics, metric)
        values = finite_values(points)
        if values:
            has_markers = metric == "eval_loss" and len(points) <= 60
            lines.append(Line(name, thin(points), number, has_markers, smooth(points)))
    return Chart("loss" if metric == "eval_loss" else "loss_training", title, tuple(lines))


Read = Callable[[RunRecord], "float | None"]


def _results(runs: Sequence[RunRecord]) -> tuple[ComparedRow, ...]:
    rows = [ComparedRow("Model", tuple(Cell(head.model_name(run)) for run in runs))]
    for split in ("validation", "test", "training"):
        before, after = (_loss_of(split, is_after=is_after) for is_after in (False, True))
        rows.append(_row(f"{split.capitalize()} loss before", runs, before, form.loss))
        rows.append(_row(f"{split.capitalize()} loss after", runs, after, form.loss, best=min))
    rows += [
        _row("Mean training loss", runs, _summary("train_loss"), form.loss, best=min),
        _row("Best step", runs, head.best_step, "{:,.0f}".format),
        _row("Steps", runs, head.last_step, "{:,.0f}".format),
        _row("Answer quality", runs, head.quality, "{:.2f}".format, best=max),
        _row("Safe answers", runs, head.compliance_rate, "{:.0%}".format, best=max),
        _row("Time", runs, head.training_seconds, form.duration),
        _row("Tokens per second", runs, head.tokens_per_second, form.rate, best=max),
        *(_memory_row(runs, is_host=is_host) for is_host in (False, True)),
    ]
    return tuple(row for row in rows if any(cell.text for cell in row.cells))


def _row(
    name: str,
    runs: Sequence[RunRecord],
    read: Read,
    write: Callable[[float], str],
    best: Callable[[list[float]], float] | None = None,
) -> ComparedRow:
    values = [read(run) for run in runs]
    known = [value for value in values if value is not None]
    is_contest = best is not None and len(set(known)) > 1
    winner = best(known) if best is not None and is_contest else None
    return ComparedRow(
        name,
        tuple(
            Cell("") if value is None else Cell(write(value), is_best=value == winner)
            for value in values
        ),
    )


def _loss_of(split: str, *, is_after: bool) -> Read:
    def read(run: RunRecord) -> float | None:
        pairs = [pair for pair in head.loss_pairs(run) if pair.split == split]
        return None if not pairs else pairs[0].after if is_after else pairs[0].before

    return read


def _summary(key: str) -> Read:
    return lambda run: as_finite(run.summary.get(key))


def _memory_row(runs: Sequence[RunRecord], *, is_host: bool) -> ComparedRow:
    def read(run: RunRecord) -> float | None:
        return (
            peak_memory_gib(run) if (measured_memory(run) == "host_memory_gib") is is_host else None
        )

    name = "Peak host memory" if is_host else "Peak GPU memory"
    return _row(name, runs, read, form.gib, best=min)


def _settings(runs: Sequence[RunRecord]) -> tuple[ComparedRow, ...]:
    flat = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings if key not in _NOT_SETTINGS)
    rows = []
    for key in keys:
        values = [settings.get(key) for settings in flat]
        known = [value for value, settings in zip(values, flat, strict=True) if settings]
        if any(value != known[0] for value in known):
            cells = tuple(Cell(form.cut(form.setting(value), 600)) for value in values)
            rows.append(ComparedRow(key, cells))
    return tuple(rows)


def _prompts(runs: Sequence[RunRecord]) -> tuple[tuple[ComparedPrompt, ...], str]:
    answers = [last_answers(run) for run in runs]
    keys = list(dict.fromkeys(key for found in answers for key in found))
    # Those that most runs answered come first: they are what can be compared.
    keys.sort(key=lambda key: -sum(key in found for found in answers))
    rows = tuple(
        ComparedPrompt(form.cut(key[0], MAX_CHARACTERS), tuple(found.get(key) for found in answers))
        for key in keys[:MAX_PROMPTS]
    )
    note = f"{len(rows)} of {len(keys):,} prompts" if len(rows) < len(keys) else ""
    return rows, note
