"""Tables of a run's page: its data, the plan beside what was measured, settings, advice. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.report import format as form
from trainer.report.curves import measured_memory, peak_memory_gib, predicted_peak_gib
from trainer.report.head import model_name
from trainer.report.read import RunRecord
from trainer.report.values import Json, as_finite, as_object, as_objects, as_text, as_texts, flatten

Row = tuple[str, ...]
_MAX_LISTED = 10
_MAX_NAME = 80
_MAX_CHARACTERS = 600
"""Of what is a sentence or a setting, unless something went wrong."""
_LENGTHS = ("min", "mean", "p50", "p95", "max")
_DUPLICATES = {
    "inside_train": "repeated inside the training split",
    "validation_also_in_train": "validation examples also in the training split",
    "test_also_in_train": "test examples also in the training split",
}


@dataclass(frozen=True)
class Advice:
    """What the diagnostics said."""

    title: str
    severity: str
    step: str
    seen: str
    why: str
    change: str


@dataclass(frozen=True)
class DataFacts:
    """What data_report.json says."""

    splits: tuple[Row, ...]
    sources: tuple[Row, ...]
    duplicates: tuple[Row, ...]
    skipped: tuple[Row, ...]
    listed: tuple[Row, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    preview: tuple[tuple[str, bool], ...]
    """Pieces of one example, and whether each is learned."""
    preview_size: str


@dataclass(frozen=True)
class PlanFacts:
    """The plan, and what came of it."""

    beside: tuple[Row, ...]
    """Name, planned, measured."""
    decisions: tuple[Row, ...]
    memory: tuple[Row, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class SettingGroup:
    """One section of the config."""

    name: str
    rows: tuple[Row, ...]


def _shown(text: object) -> str:
    return form.cut(as_text(text), _MAX_CHARACTERS)


def make_advice(run: RunRecord) -> tuple[Advice, ...]:
    """Return the newest of each piece of advice, in the order they came."""
    found: dict[str, Advice] = {}
    for line in run.advice:
        step, name = as_finite(line.get("step")), as_text(line.get("name"))
        seen, why, change = (_shown(line.get(key)) for key in ("seen", "why", "change"))
        if not (name or seen or change):
            continue
        found[name] = Advice(
            title=form.cut(name.replace("_", " ").capitalize(), _MAX_NAME),
            severity=form.cut(as_text(line.get("severity")) or "note", _MAX_NAME),
            step="" if step is None else f"{step:,.0f}",
            seen=seen,
            why=why,
            change=change,
        )
    return tuple(found.values())


def make_data(run: RunRecord) -> DataFacts | None:
    """Return the data report; None when there is none."""
    data = run.data
    if not data:
        return None
    skipped, preview = as_object(data.get("skipped")), as_object(data.get("preview"))
    duplicates = as_object(data.get("duplicates"))
    tokens, labels = (as_finite(preview.get(key)) for key in ("tokens", "label_tokens"))
    return DataFacts(
        splits=tuple(
            _split_row(name, as_object(split))
            for name, split in as_object(data.get("splits")).items()
        ),
        sources=tuple(
            (as_text(source.get("path")), _rows_read(source))
            for source in as_objects(data.get("sources"))
        ),
        duplicates=tuple(
            (text, form.count(duplicates[key]))
            for key, text in _DUPLICATES.items()
            if duplicates.get(key)
        ),
        skipped=tuple(
            (reason, form.count(number))
            for reason, number in as_object(skipped.get("by_reason")).items()
        ),
        listed=tuple(
            (as_text(row.get("where")), _shown(row.get("message")))
            for row in as_objects(skipped.get("listed"))[:_MAX_LISTED]
        ),
        warnings=tuple(_shown(text) for text in as_texts(data.get("warnings"))),
        notes=tuple(_shown(text) for text in as_texts(data.get("notes"))),
        preview=mark_learned(as_text(preview.get("text")), as_texts(preview.get("learned"))),
        preview_size=""
        if tokens is None or labels is None
        else f"{tokens:,.0f} tokens, {labels:,.0f} of them learned",
    )


def _rows_read(source: Json) -> str:
    number = form.count(source.get("rows_read"))
    return f"{number} rows" if number else ""


def _split_row(name: str, split: Json) -> Row:
    length = as_object(split.get("length"))
    lengths = [as_finite(length.get(key)) for key in _LENGTHS]
    counts = (split.get(key) for key in ("rows", "examples", "tokens", "label_tokens"))
    return (
        name,
        *(form.count(value) for value in counts),
        *("" if value is None else f"{value:,.0f}" for value in lengths),
        form.count(split.get("truncated")),
    )


def mark_learned(text: str, learned: list[str]) -> tuple[tuple[str, bool], ...]:
    """Return the text in pieces, each with whether it is one of the learned parts, in order.

    From the end: an answer stands after the question that may quote it. A part that is missing, as
    a long example is cut, leaves the whole unmarked.
    """
    pieces: list[tuple[str, bool]] = []
    end = len(text)
    for part in reversed([part for part in learned if part]):
        found = text.rfind(part, 0, end)
        if found < 0:
            return ((text, False),) if text else ()
        pieces += [(text[found + len(part) : end], False), (part, True)]
        end = found
    pieces.append((text[:end], False))
    return tuple(piece for piece in reversed(pieces) if piece[0])


def make_plan(run: RunRecord) -> PlanFacts | None:
    """Return the plan beside what was measured; None when there is no plan."""
    if not run.plan:
        return None
    return PlanFacts(
        beside=tuple(row for row in _beside(run) if row[1] or row[2]),
        decisions=tuple(
            tuple(form.setting(line.get(key)) for key in ("setting", "value", "reason"))
            for line in as_objects(run.plan.get("decisions"))
        ),
        memory=tuple(
            (
                as_text(term.get("name")),
                as_text(term.get("place")),
                f"{as_finite(term.get('gib')) or 0:.2f}",
                as_text(term.get("when")),
                as_text(term.get("source")),
            )
            for term in as_objects(run.plan.get("terms"))
            if (as_finite(term.get("gib")) or 0) >= 0.005
        ),
        notes=tuple(_shown(text) for text in as_texts(run.plan.get("notes"))),
    )


def _beside(run: RunRecord) -> list[Row]:
    plan, training = run.plan, as_object(run.config.get("training"))
    planned = as_object(plan.get("overrides"))
    predicted, peak = predicted_peak_gib(run), peak_memory_gib(run)
    key = measured_memory(run)
    memory = "Peak host memory" if key == "host_memory_gib" else "Peak GPU memory"
    tokens = "training.max_tokens_per_device"
    batch = "training.global_batch_size"
    return [
        (memory, "" if predicted is None else form.gib(predicted), _measured(peak, predicted)),
        ("Device", _device(plan), ""),
        ("Processes", _processes(plan), ""),
        ("Engine", form.setting(plan.get("engine")), ""),
        ("Strategy", form.setting(plan.get("strategy")), ""),
        ("Precision", form.setting(plan.get("precision")), ""),
        (
            "Tokens in a micro-batch",
            form.count(planned.get(tokens)),
            _used(training, "max_tokens_per_device"),
        ),
        (
            "Examples per step",
            form.count(planned.get(batch)),
            _used(training, "global_batch_size"),
        ),
    ]


def _processes(plan: Json) -> str:
    nodes, each = (as_finite(plan.get(key)) for key in ("nodes", "processes_per_node"))
    if not nodes or not each:
        return ""
    return f"{each:.0f}" if nodes == 1 else f"{each:.0f} on each of {nodes:.0f} nodes"


def _measured(peak: float | None, predicted: float | None) -> str:
    if peak is None:
        return ""
    return form.gib(peak) + (f", {peak / predicted:.0%} of it" if predicted else "")


def _used(training: Json, key: str) -> str:
    value = training.get(key)
    return "" if value is None else form.count(value)


def _device(plan: Json) -> str:
    parts = (as_text(plan.get("device")), as_text(plan.get("profile")))
    return ", ".join(part for part in parts if part)


_KEY_SETTINGS = {
    "lora.r": "LoRA rank",
    "lora.alpha": "LoRA alpha",
    "lora.target_modules": "LoRA on",
    "model.quantization": "Base weights",
    "training.learning_rate": "Learning rate",
    "training.scheduler": "Schedule",
    "training.epochs": "Epochs",
    "training.max_steps": "Steps",
    "training.global_batch_size": "Examples per step",
    "training.precision": "Precision",
    "data.max_length": "Longest example",
    "seed": "Seed",
}


def make_key_settings(run: RunRecord) -> tuple[Row, ...]:
    """Return the settings a reader asks for first."""
    flat = flatten(run.config)
    is_adapter = flat.get("lora.enabled") is not False
    rows: list[Row] = [("Model", model_name(run))]
    if run.config and not is_adapter:
        rows.append(("Trained", "all weights"))
    rows += [
        (text, form.setting(flat.get(key)))
        for key, text in _KEY_SETTINGS.items()
        if is_adapter or not key.startswith("lora.")
    ]
    return tuple(row for row in rows if row[1])


def make_settings(run: RunRecord) -> tuple[SettingGroup, ...]:
    """Return every setting that has a value, by section."""
    groups: dict[str, list[Row]] = {}
    for key, value in flatten(run.config).items():
        section, _, name = key.partition(".")
        text = form.setting(value)
        if text and value not in ([], {}):
            groups.setdefault(section if name else "", []).append((name or section, _shown(text)))
    return tuple(SettingGroup(name or "run", tuple(rows)) for name, rows in groups.items())
