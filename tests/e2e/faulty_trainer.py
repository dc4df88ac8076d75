"""`python -m trainer`, with ranks that go wrong in their third step.

RANKZERO_TEST_FAULTS is rank:kind, several joined by commas.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from trainer.__main__ import main
from trainer.attempt import taking_part
from trainer.entry import run_entry
from trainer.world import read_world

FAULTY_STEP = 3


def go_wrong(kind: str) -> None:
    import torch

    if kind == "raise":
        raise KeyError("a bug of rank 1")
    if kind == "memory":
        torch.empty(1 << 50)  # a petabyte: the allocator's own error
    if kind == "gpu-memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if kind == "leave":
        os._exit(0)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stuck":  # as in a collective of NCCL, which no signal handler interrupts
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        signal.pause()


def break_training(kind: str) -> None:
    from trainer.training import RankZeroTrainer

    step = RankZeroTrainer.training_step

    def faulty(self: RankZeroTrainer, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step + 1 == FAULTY_STEP:
            go_wrong(kind)
        return step(self, *arguments, **named)

    RankZeroTrainer.training_step = faulty


def run_rank(argv: list[str]) -> None:
    with taking_part(read_world):
        faults = dict(text.split(":") for text in os.environ["RANKZERO_TEST_FAULTS"].split(","))
        kind = faults.get(str(read_world().rank))
        if kind is not None:
            break_training(kind)
        main(argv, prog_name="trainer", standalone_mode=False)


if __name__ == "__main__":
    sys.exit(run_entry(run_rank))
