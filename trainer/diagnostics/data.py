"""Diagnoses of the data and the adapter's size, before anything is learned. PURE."""

from __future__ import annotations

from collections.abc import Callable

from trainer.diagnostics.advice import Advice
from trainer.diagnostics.facts import RunFacts

_MANY_DUPLICATES, _MANY_TRUNCATED = 0.2, 0.05  # shares of the training examples
_FEW_EXAMPLES = 50
_MANY_EPOCHS = 10
_LARGE_ADAPTER = 100  # trained parameters for each labelled token of all epochs


def duplicates(facts: RunFacts) -> Advice | None:
    """Training examples repeat each other."""
    share = facts.num_duplicates / max(1, facts.num_examples)
    if share < _MANY_DUPLICATES:
        return None
    distinct = facts.num_examples - facts.num_duplicates
    return Advice(
        "constant data" if distinct <= max(1, facts.num_examples // 20) else "repeated data",
        "warning",
        f"{facts.num_duplicates} of {facts.num_examples} training examples repeat an earlier one: "
        f"{distinct} are distinct",
        "the model learns these few texts by heart and the loss looks better than it is",
        "remove the copies, or check that data.columns names the columns that differ",
    )


def truncation(facts: RunFacts) -> Advice | None:
    """Examples lose their end."""
    share = facts.num_truncated / max(1, facts.num_examples)
    if share < _MANY_TRUNCATED:
        return None
    return Advice(
        "truncated data",
        "warning",
        f"{facts.num_truncated} of {facts.num_examples} training examples ({share:.0%}) are cut "
        f"at {facts.max_length} tokens",
        "the model never sees how these answers end, and learns not to stop",
        "raise data.max_length, or leave them out (data.too_long: skip)",
    )


def few_examples(facts: RunFacts) -> Advice | None:
    """There is little to learn from, or it is seen very often."""
    if facts.num_examples >= _FEW_EXAMPLES and facts.epochs <= _MANY_EPOCHS:
        return None
    return Advice(
        "little data",
        "info",
        f"{facts.num_examples} training examples, each seen {facts.epochs:.3g} times",
        "few rows seen often are remembered, not understood",
        "watch the validation loss, stop early, and give more rows if you can",
    )


def large_adapter(facts: RunFacts) -> Advice | None:
    """The adapter could store the data many times over."""
    seen = max(1.0, facts.num_labels * facts.epochs)
    if facts.rank is None or facts.rank <= 4 or facts.num_trainable / seen < _LARGE_ADAPTER:
        return None
    fitting = max(4, int(facts.rank * _LARGE_ADAPTER * seen / facts.num_trainable))
    return Advice(
        "large rank",
        "info",
        f"rank {facts.rank} trains {facts.num_trainable:,} parameters on {facts.num_labels:,} "
        "labelled tokens",
        "an adapter this large for so little text overfits before it generalises",
        f"try lora.r: {fitting}, or lora.progressive_ranks",
    )


DATA: tuple[Callable[[RunFacts], Advice | None], ...] = (
    duplicates,
    truncation,
    few_examples,
    large_adapter,
)
