"""The same step on two processes over gloo, against each example alone in one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.one_step import MemorySplit, reference_step, write_step
from tests.tiny import make_model_folder
from tests.unit.test_one_step import ALL_TOKENS, assert_same_gradients
from tests.warm_ranks import run_warm

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("max_tokens", [ALL_TOKENS, int(MemorySplit().lengths.max())])
def test_two_ranks_give_the_gradients_of_one(max_tokens: int, tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model")
    expected_loss, expected = reference_step(AutoModelForCausalLM.from_pretrained(folder))
    output = tmp_path / "step"
    finished = run_warm(partial(write_step, folder, output, max_tokens), ranks=2)
    assert finished.returncode == 0, finished.stderr[-3000:]
    for rank in range(2):
        loss, gradients, num_micro_batches = torch.load(f"{output}.{rank}")
        assert num_micro_batches >= (1 if max_tokens == ALL_TOKENS else 2)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert_same_gradients(gradients, expected)
