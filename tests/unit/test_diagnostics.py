"""Diagnoses: each is given where it should be, with the run's numbers, and not elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.diagnostics.advice import Advice
from trainer.diagnostics.data import DATA
from trainer.diagnostics.facts import RunFacts
from trainer.diagnostics.history import History
from trainer.diagnostics.learning import LEARNING

FACTS = RunFacts(
    num_steps=100,
    warmup_steps=3,
    peak_rate=2e-4,
    max_grad_norm=1.0,
    max_length=512,
    epochs=2.0,
    num_examples=800,
    num_labels=80_000,
    num_duplicates=0,
    num_truncated=0,
    validation_unseen=0.02,
    rank=16,
    num_trainable=1_000_000,
)


def history(
    losses: list[float] | None = None, validation: list[float] | None = None, **series: list[float]
) -> History:
    """Losses at steps 5, 10, ...; validation at steps 0, 10, 20, ..."""
    made = History()
    for number, loss in enumerate(losses or [], 1):
        made.add({"step": 5 * number, "loss": loss})
    for number, loss in enumerate(validation or []):
        made.add({"step": 10 * number, "eval_loss": loss})
    for name, values in series.items():
        for number, value in enumerate(values, 1):
            made.add({"step": 5 * number, name: value})
    return made


def found(past: History, facts: RunFacts = FACTS) -> dict[str, Advice]:
    advice = [diagnose(past, facts) for diagnose in LEARNING]
    return {one.name: one for one in advice if one is not None}


HEALTHY = [2.6, 2.2, 1.9, 1.7, 1.55, 1.42, 1.31, 1.22, 1.14, 1.07]


def test_a_healthy_run_hears_nothing() -> None:
    past = history(HEALTHY, [2.6, 2.1, 1.8, 1.6, 1.5, 1.45], grad_norm=[1.0, 0.9, 1.1, 0.8, 1.2, 1])
    assert found(past) == {}
    assert [diagnose(FACTS) for diagnose in DATA] == [None] * len(DATA)


# Name of the advice -> what was measured, other facts, words that name what was seen.
CASES: dict[str, tuple[History, RunFacts, tuple[str, ...]]] = {
    "rising loss": (
        history([2.6, 3.1, 5.0, 7.5, 8.0]),
        replace(FACTS, peak_rate=2e-2),
        ("2.60", "6.83", "0.02"),
    ),
    "overfitting": (
        history(HEALTHY, [2.6, 1.9, 1.7, 1.75, 1.9]),
        FACTS,
        ("1.900", "1.700", "step 20"),
    ),
    "validation from another domain": (
        history(HEALTHY, [3.4, 3.38, 3.41]),
        replace(FACTS, validation_unseen=0.4),
        ("40%", "3.40"),
    ),
    "underfitting": (
        history([2.6, 2.59, 2.6, 2.6, 2.58, 2.59, 2.6, 2.58, 2.59, 2.58]),
        FACTS,
        ("2.58",),
    ),
    "converged": (
        history([2.6, 1.9, 1.4, 1.2, 1.101, 1.1, 1.1, 1.101, 1.1, 1.1, 1.1, 1.1]),
        FACTS,
        ("1.1000", "1.1003"),
    ),
    "tiny learning rate": (history([2.6]), replace(FACTS, peak_rate=1e-8), ("1e-08",)),
    "exploding gradients": (
        history(HEALTHY, grad_norm=[1.0, 0.9, 1.1, 0.8, 1.2, 25.0]),
        FACTS,
        ("25", "step 30"),
    ),
    "zero gradients": (history(HEALTHY[:2], grad_norm=[0.0, 0.0]), FACTS, ("exactly 0", "step 10")),
    "low utilisation": (history(HEALTHY, mfu=[0.01, 0.05, 0.05, 0.06, 0.05]), FACTS, ("5.0%",)),
    "less safe than before": (
        history(HEALTHY, eval_safety_compliance_rate=[0.9, 0.7]),
        FACTS,
        ("70%", "90%"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_named_with_its_numbers(name: str) -> None:
    past, facts, words = CASES[name]
    advice = found(past, facts)
    assert list(advice) == [name]
    assert all(word in advice[name].seen for word in words), advice[name].seen
    assert advice[name].why
    assert "." in advice[name].change  # names a setting


def test_every_diagnosis_of_learning_has_a_case() -> None:
    assert len(LEARNING) == len(CASES)


def test_validation_that_rises_at_the_end_of_a_good_run_is_no_overfitting() -> None:
    assert found(history(HEALTHY, [2.6, 1.9, 1.7, 1.6, 1.605])) == {}


def test_numbers_that_are_none_do_not_count() -> None:
    past = history([2.6, float("nan"), 2.2])
    assert [loss for _, loss in past.losses] == [2.6, 2.2]


DATA_CASES = {
    "constant data": (replace(FACTS, num_duplicates=799), ("799 of 800", "1 are distinct")),
    "repeated data": (replace(FACTS, num_duplicates=300), ("300 of 800",)),
    "truncated data": (replace(FACTS, num_truncated=80), ("80 of 800", "512 tokens")),
    "little data": (replace(FACTS, num_examples=20, num_labels=80_000), ("20 training examples",)),
    "large rank": (replace(FACTS, num_labels=4_000, rank=64), ("rank 64", "4,000")),
}


@pytest.mark.parametrize("name", DATA_CASES)
def test_a_fault_of_the_data_is_named_with_its_numbers(name: str) -> None:
    facts, words = DATA_CASES[name]
    advice = [one for one in (diagnose(facts) for diagnose in DATA) if one is not None]
    assert [one.name for one in advice] == [name]
    assert all(word in advice[0].seen for word in words), advice[0].seen
