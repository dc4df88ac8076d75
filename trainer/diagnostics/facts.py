"""What is known of a run before its first step. PURE."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunFacts:
    """Settings and data that diagnoses refer to."""

    num_steps: int
    warmup_steps: int
    peak_rate: float
    max_grad_norm: float
    max_length: int
    epochs: float
    num_examples: int  # of the training split
    num_labels: int  # of the training split
    num_duplicates: int  # training examples that repeat an earlier one
    num_truncated: int
    validation_unseen: float | None
    """Share of the validation labels whose token is no label of the training split."""
    rank: int | None  # None: full fine-tuning
    num_trainable: int
