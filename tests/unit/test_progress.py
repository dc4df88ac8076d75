"""What training prints for a person fits the terminal, and a bar leaves no line half drawn."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from trainer.callbacks.progress import ProgressCallback, between_figures, training_line

LOGS = {
    "epoch": 0.04,
    "loss": 0.9845,
    "learning_rate": 5e-4,
    "grad_norm": 3.11,
    "tokens_per_second": 108.0,
    "tflops_per_second": 0.0511,
    "host_memory_gib": 1.7,
}


@pytest.mark.parametrize("width", [80, 100])
def test_a_training_line_is_broken_between_figures(width: int) -> None:
    line = training_line(1, 40, LOGS, 0.9845)
    rows = between_figures(line, width).split("\n")
    assert len(rows) == 2
    assert all(len(row) <= width for row in rows)
    assert " ".join(rows).split() == line.split()
    assert rows[1].strip() in line
    assert between_figures(line, len(line)) == line


def test_what_follows_a_bar_begins_on_its_own_line() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80)
    callback = ProgressCallback(console, num_steps=40)
    callback.progress.start()
    callback.close()
    console.print("error: stopped")
    assert written.getvalue().rpartition("training")[2].count("\x1b[2K") >= 1  # wiped
    callback.close()  # also after the end of the training
