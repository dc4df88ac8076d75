"""Diagnoses of how a run learns. PURE: the history, the facts -> advice, or none.

Loss windows are small on purpose: a run that goes wrong should hear of it while it can be stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from trainer.diagnostics.advice import Advice
from trainer.diagnostics.facts import RunFacts
from trainer.diagnostics.history import History, mean_of

Diagnosis = Callable[[History, RunFacts], Advice | None]

_RECENT = 3  # logged losses, or evaluations, that are looked at together
_RISE, _MIN_RISE = 1.2, 0.2  # a training loss that grew by a fifth, and by this much
_OVERFIT = 1.01  # validation loss above its best
_FLAT, _CONVERGED = 0.02, 0.005  # relative change of a window's mean
_CARRIES_OVER = 0.25  # of the training loss's fall, what validation falls at least
_LEARNED = 0.15  # fall of the training loss from which something was learned
_TINY_RATE = 1e-6
_EXPLODING, _MANY = 10.0, 5  # times the median gradient norm, of so many lines
_LOW_MFU = 0.15


def diverging(history: History, facts: RunFacts) -> Advice | None:
    """The training loss is clearly above where it began."""
    losses = history.losses
    if len(losses) < 2 * _RECENT - 1:
        return None
    first, recent = losses[0][1], mean_of(losses[-_RECENT:])
    if recent < max(first * _RISE, first + _MIN_RISE):
        return None
    return Advice(
        "rising loss",
        "warning",
        f"the training loss rose from {first:.2f} to {recent:.2f} by step {losses[-1][0]}, "
        f"at a peak learning rate of {facts.peak_rate:.3g}",
        "steps this large jump over what they should find: the model forgets more than it learns",
        f"lower training.learning_rate, first to {facts.peak_rate / 10:.1g}, or warm up longer "
        f"(now {facts.warmup_steps} steps)",
    )


def overfitting(history: History, facts: RunFacts) -> Advice | None:
    """Validation got better, then worse, while training goes on getting better."""
    measured = history.validation
    if len(measured) < _RECENT + 1:
        return None
    best_step, best = min(measured, key=lambda point: (point[1], point[0]))
    after = [point for point in measured if point[0] > best_step]
    is_rising = len(after) >= 2 and all(loss > best * _OVERFIT for _, loss in after[-2:])
    before_best = [point for point in history.losses if point[0] <= best_step]
    falls = mean_of(history.losses[-_RECENT:]) < mean_of(before_best[-_RECENT:])
    if not (is_rising and falls and best < measured[0][1]):
        return None
    step, loss = measured[-1]
    return Advice(
        "overfitting",
        "warning",
        f"the validation loss rose from {best:.3f} at step {best_step} to {loss:.3f} at step "
        f"{step}, while the training loss fell to {mean_of(history.losses[-_RECENT:]):.3f}",
        f"after {best_step / facts.num_steps * facts.epochs:.1f} epochs the run learns its "
        f"{facts.num_examples} examples by heart",
        f"stop near step {best_step} (evaluation.early_stopping_patience: 2), train fewer epochs, "
        "give more data, or a lower lora.r",
    )


def validation_differs(history: History, facts: RunFacts) -> Advice | None:
    """What is learned does not carry over to the validation split, from the start."""
    losses, measured = history.losses, history.validation
    if len(losses) < _RECENT or len(measured) < 2 or measured[0][0] != 0:
        return None
    first, last = losses[0][1], mean_of(losses[-_RECENT:])
    start, best = measured[0][1], min(loss for _, loss in measured)
    training_fell, validation_fell = (first - last) / first, (start - best) / start
    if training_fell < _LEARNED or validation_fell > _CARRIES_OVER * training_fell:
        return None
    unseen = facts.validation_unseen
    share = "" if unseen is None else f"; {unseen:.0%} of its labels are tokens training never has"
    return Advice(
        "validation from another domain",
        "warning",
        f"the training loss fell by {training_fell:.0%} ({first:.2f} to {last:.2f}), the "
        f"validation loss by {max(validation_fell, 0):.0%} ({start:.2f} to {best:.2f} at best)"
        + share,
        "the two splits hold different kinds of text, so the best model is chosen by the wrong one",
        "take data.validation from what the model is for, or split the training rows "
        "(data.validation_size)",
    )


def underfitting(history: History, facts: RunFacts) -> Advice | None:
    """Half of the run is over and the loss has hardly moved."""
    losses = history.losses
    if history.step < facts.num_steps / 2 or len(losses) < 2 * _RECENT:
        return None
    first, last = mean_of(losses[:_RECENT]), mean_of(losses[-_RECENT:])
    if not 0 <= (first - last) / first < _FLAT or last < 0.1:
        return None
    size = f"rank {facts.rank}" if facts.rank else "all weights"
    return Advice(
        "underfitting",
        "warning",
        f"the training loss is {last:.3f} at step {losses[-1][0]}, it began at {first:.3f}",
        f"half of the steps changed almost nothing ({size}, rate {facts.peak_rate:.1g})",
        "raise training.learning_rate or lora.r, adapt more layers (lora.target_modules: "
        "all-linear), or train longer",
    )


def converged(history: History, facts: RunFacts) -> Advice | None:
    """The mean of the last window is no better than that of the one before."""
    losses = history.losses
    window = max(_RECENT, len(losses) // 5)
    left = facts.num_steps - history.step
    if len(losses) < 3 * window or left < facts.num_steps / 5:
        return None
    before, now = mean_of(losses[-2 * window : -window]), mean_of(losses[-window:])
    fell = mean_of(losses[:window]) - now
    if abs(before - now) / before > _CONVERGED or fell / now < _LEARNED:
        return None
    return Advice(
        "converged",
        "info",
        f"the mean loss of the last {window} lines is {now:.4f}, of those before {before:.4f}",
        f"the {left} steps that are left will change little",
        "stop here next time (training.max_steps, or evaluation.early_stopping_patience)",
    )


def tiny_rate(history: History, facts: RunFacts) -> Advice | None:
    """The rate is too low to change anything, not only at the schedule's end."""
    if facts.peak_rate >= _TINY_RATE or not history.losses:
        return None
    return Advice(
        "tiny learning rate",
        "warning",
        f"the learning rate is {facts.peak_rate:.3g} at its peak",
        "updates this small vanish: the loss will not move",
        "raise training.learning_rate (adapters usually learn at 1e-4 to 3e-4, all weights at "
        "1e-5 to 5e-5)",
    )


def exploding_gradients(history: History, facts: RunFacts) -> Advice | None:
    """A gradient is far larger than those before it."""
    norms = history.gradients
    if len(norms) <= _MANY:
        return None
    usual, (step, last) = median(norm for _, norm in norms[:-1]), norms[-1]
    if last < _EXPLODING * max(usual, 1e-3) or last < 1:
        return None
    clipping = (
        f"they are clipped at {facts.max_grad_norm:g}" if facts.max_grad_norm else "unclipped"
    )
    return Advice(
        "exploding gradients",
        "warning",
        f"the gradient's norm is {last:.3g} at step {step}, {last / usual:.0f} times the usual "
        f"{usual:.3g} ({clipping})",
        "such a step is not about what the examples have in common",
        "lower training.learning_rate, set training.max_grad_norm: 1.0, and look at the rows of "
        "that step",
    )


def zero_gradients(history: History, _: RunFacts) -> Advice | None:
    """Nothing reaches the trained weights."""
    norms = history.gradients
    if len(norms) < 2 or any(norm > 0 for _, norm in norms[-2:]):
        return None
    return Advice(
        "zero gradients",
        "warning",
        f"the gradient's norm is exactly 0 at step {norms[-1][0]} and before",
        "no trained weight has a part in the loss, so nothing is learned",
        "check lora.target_modules and that rows have text to learn (data.train_on)",
    )


def low_utilisation(history: History, _: RunFacts) -> Advice | None:
    """The accelerator waits more than it computes."""
    used = history.mfu
    if len(used) < _MANY:
        return None
    share = median(value for _, value in used[1:])
    if share >= _LOW_MFU:
        return None
    return Advice(
        "low utilisation",
        "info",
        f"the device does {share:.1%} of the arithmetic it could (MFU)",
        "small or few micro-batches leave it idle between kernels, offload makes it wait",
        "raise training.max_tokens_per_device and training.global_batch_size, turn "
        "training.compile on, or choose a strategy without offload (rankzero plan)",
    )


def safety_fell(history: History, _: RunFacts) -> Advice | None:
    """Answers are less safe than those of the base model."""
    rates = history.compliance
    if len(rates) < 2 or rates[-1][1] > rates[0][1] - 0.1:
        return None
    (first_step, first), (step, last) = rates[0], rates[-1]
    return Advice(
        "less safe than before",
        "warning",
        f"{last:.0%} of the answers are safe at step {step}, {first:.0%} were at step {first_step}",
        "the training data teaches answers that the safety rules refuse",
        "look at safety.jsonl, correct such rows, and let merge.require guard the result "
        "(safety.compliance_rate: '>= 0.9')",
    )


LEARNING: tuple[Diagnosis, ...] = (
    diverging,
    overfitting,
    validation_differs,
    underfitting,
    converged,
    tiny_rate,
    exploding_gradients,
    zero_gradients,
    low_utilisation,
    safety_fell,
)
