"""How long ranks may take to save, computed by hand."""

from __future__ import annotations

import pytest

from launcher.grace import (
    LEAST_SECONDS,
    micro_batch_seconds,
    shutdown_grace,
    slow_flops_per_second,
)
from launcher.profile_file import load_profile
from trainer.model_facts import ModelFacts

FACTS = ModelFacts(
    architecture="Made up",
    num_layers=2,
    hidden_size=10,
    vocabulary_size=100,
    max_positions=None,
    total_parameters=1000,
    trainable_parameters=10,
    frozen_parameters=990,
    frozen_bytes=0,
    buffer_bytes=0,
    largest_matrix_parameters=1,
    largest_trained_parameters=1,
    embedding_parameters=0,
    quantized_parameters=0,
    activations={},
)


@pytest.mark.parametrize(
    ("num_bytes", "micro_batch", "last_save", "seconds"),
    [
        (0, 0, None, LEAST_SECONDS),
        (5e9, 2, None, LEAST_SECONDS),  # 2 x (2 x 2 + 50) is less
        (10e9, 5, None, 220),  # 2 x (2 x 5 + 100)
        (10e9, 5, 60.0, 220),
        (10e9, 5, 100.0, 300),
        (10e9, 5, 100.1, 301),
    ],
)
def test_the_longest_reason_counts(
    num_bytes: float, micro_batch: float, last_save: float | None, seconds: int
) -> None:
    grace = shutdown_grace(
        checkpoint_bytes=num_bytes, micro_batch_seconds=micro_batch, last_save_seconds=last_save
    )
    assert grace.seconds == seconds
    assert grace.reason


def test_a_micro_batch_is_its_matrix_products_and_attention() -> None:
    per_token = 6 * 1000 + 12 * 2 * 10 * 50
    seconds = micro_batch_seconds(FACTS, 50, flops_per_second=1000, relative_time=1.5)
    assert seconds == pytest.approx(1.5 * per_token * 50 / 1000)


def test_devices_are_taken_to_be_slow_but_not_equal() -> None:
    speeds = [slow_flops_per_second(load_profile(name)) for name in ("cpu", "multi-a100-80gb")]
    assert speeds[0] == 80e9  # one node's processor
    assert speeds[1] == pytest.approx(31.2e12)  # a tenth of 312
