"""What the model said while it learned: samples side by side, and answers found unsafe. PURE."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.report import format as form
from trainer.report.read import RunRecord
from trainer.report.series import newest_by_step
from trainer.report.values import Json, as_finite, as_object, as_objects, as_text

MAX_STEPS = 8
MAX_PROMPTS = 20
MAX_CHARACTERS = 1500
"""Of one answer. With the two above the largest table stays under a megabyte of Latin text."""
MAX_UNSAFE = 25


@dataclass(frozen=True)
class Answer:
    """One prompt's answers at one step."""

    step: str
    greedy: str
    sampled: str
    quality: str


@dataclass(frozen=True)
class Prompt:
    """A row: one prompt, and its answers over time; None where it was not asked."""

    text: str
    answers: tuple[Answer | None, ...]


@dataclass(frozen=True)
class Samples:
    """The table of answers."""

    prompts: tuple[Prompt, ...]
    steps: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Violation:
    """A rule that an answer broke."""

    rule: str
    severity: str
    found: str


@dataclass(frozen=True)
class Unsafe:
    """An answer that broke rules, and whether that makes it unsafe."""

    prompt: str
    answer: str
    score: str
    is_safe: bool
    violations: tuple[Violation, ...]


@dataclass(frozen=True)
class SafetyCheck:
    """One evaluation of safety."""

    step: str
    compliance: str
    score: str
    num_checks: int
    num_violations: int
    unsafe: tuple[Unsafe, ...]
    num_hidden: int
    is_newest: bool
    """Of the weights that are the run's result, once it has ended."""


def make_samples(run: RunRecord) -> Samples | None:
    """Return the samples as a table of prompts by steps; None when there are none."""
    by_step = newest_by_step(line for line in run.samples if as_objects(line.get("samples")))
    if not by_step:
        return None
    steps = choose_steps(list(by_step))
    columns = [_by_prompt(by_step[step]) for step in steps]
    prompts = list(dict.fromkeys(key for column in columns for key in column))
    rows = tuple(
        Prompt(
            form.cut(key[0], MAX_CHARACTERS),
            tuple(
                _answer(step, column[key]) if key in column else None
                for step, column in zip(steps, columns, strict=True)
            ),
        )
        for key in prompts[:MAX_PROMPTS]
    )
    notes = []
    if len(steps) < len(by_step):
        notes.append(f"{len(steps)} of {len(by_step):,} steps")
    if len(rows) < len(prompts):
        notes.append(f"{len(rows)} of {len(prompts):,} prompts")
    return Samples(rows, tuple(_step(step) for step in steps), ", ".join(notes))


def last_answers(run: RunRecord) -> dict[tuple[str, int], Answer]:
    """Return the newest answers, by prompt and its repetition."""
    by_step = newest_by_step(line for line in run.samples if as_objects(line.get("samples")))
    if not by_step:
        return {}
    step = list(by_step)[-1]
    return {key: _answer(step, sample) for key, sample in _by_prompt(by_step[step]).items()}


def choose_steps(steps: Sequence[float], limit: int = MAX_STEPS) -> list[float]:
    """Return at most `limit` steps, evenly apart, the first and the last among them."""
    ordered = sorted(steps)
    if len(ordered) <= limit:
        return ordered
    last = len(ordered) - 1
    return [ordered[round(number * last / (limit - 1))] for number in range(limit)]


def make_safety(run: RunRecord) -> tuple[SafetyCheck, ...]:
    """Return the safety checks, of the latest weights first."""
    by_step = newest_by_step(run.safety)
    steps = choose_steps(list(by_step))
    last = list(by_step)[-1] if by_step else None
    return tuple(
        _safety_check(step, by_step[step], is_newest=step == last) for step in reversed(steps)
    )


def _by_prompt(line: Json) -> dict[tuple[str, int], Json]:
    seen: Counter[str] = Counter()
    found: dict[tuple[str, int], Json] = {}
    for sample in as_objects(line.get("samples")):
        prompt = as_text(sample.get("prompt"))
        found[prompt, seen[prompt]] = sample
        seen[prompt] += 1
    return found


def _answer(step: float, sample: Json) -> Answer:
    quality = as_finite(sample.get("quality"))
    greedy, sampled = (as_text(sample.get(name)) for name in ("greedy", "sampled"))
    return Answer(
        step=_step(step),
        greedy=form.cut(greedy, MAX_CHARACTERS),
        sampled=form.cut(sampled, MAX_CHARACTERS),
        quality="" if quality is None else f"{quality:.2f}",
    )


def _safety_check(step: float, line: Json, *, is_newest: bool) -> SafetyCheck:
    checks = as_objects(line.get("checks"))
    unsafe = [
        check
        for check in checks
        if check.get("is_safe") is False or as_objects(check.get("violations"))
    ]
    rate, score = (as_finite(line.get(name)) for name in ("compliance_rate", "average_score"))
    return SafetyCheck(
        step=_step(step),
        compliance="" if rate is None else f"{rate:.0%}",
        score="" if score is None else f"{score:.2f}",
        num_checks=len(checks),
        num_violations=sum(len(as_objects(check.get("violations"))) for check in checks),
        unsafe=tuple(_unsafe(check) for check in unsafe[:MAX_UNSAFE]),
        num_hidden=max(len(unsafe) - MAX_UNSAFE, 0),
        is_newest=is_newest,
    )


def _unsafe(check: Json) -> Unsafe:
    score = as_finite(check.get("score"))
    return Unsafe(
        prompt=form.cut(as_text(check.get("prompt")), MAX_CHARACTERS),
        answer=form.cut(as_text(check.get("answer")), MAX_CHARACTERS),
        score="" if score is None else f"{score:.2f}",
        is_safe=check.get("is_safe") is not False,
        violations=tuple(
            Violation(
                rule=form.setting(as_object(found).get("rule")),
                severity=form.setting(found.get("severity")),
                found=form.cut(form.setting(found.get("found")), MAX_CHARACTERS),
            )
            for found in as_objects(check.get("violations"))
        ),
    )


def _step(step: float) -> str:
    return f"{step:,.0f}"
