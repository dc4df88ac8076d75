"""What a worker does with its way: the reference, a timed step, parity, rounds of training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from benchmarks.train import parity
from benchmarks.train.clock import RoundClock, StepWatch
from benchmarks.train.rows import load_examples
from benchmarks.train.setup import Setup
from benchmarks.train.ways import Choice, Way

Answer = dict[str, Any]
Tell = Callable[[Mapping[str, Any]], None]
_MODULES = {"rankzero": "ours", "transformers": "peers", "trl": "peers"}


class Actions:
    """Builds and runs one way. `started`: when its process did."""

    def __init__(self, setup: Setup, way: Way, started: float) -> None:
        self._setup, self._way, self._started = setup, way, started
        self._library = import_module(f"benchmarks.train.{_MODULES[way.library]}")

    def reference(self) -> Answer:
        """Compute what every way is compared with."""
        examples = load_examples(Path(self._setup.step_examples))
        return parity.write_reference(self._setup.model, examples, self._setup.reference)

    def step(self, choice: Choice | None) -> Answer:
        """Time the one step."""
        trainer, watch = self._build(choice, is_step=True), StepWatch()
        trainer.add_callback(watch)
        trainer.train()
        return {"seconds": watch.seconds}

    def parity(self, choice: Choice | None) -> Answer:
        """Compare loss and gradients of the one step with the reference."""
        trainer = self._build(choice, is_step=True)
        parity.fill_adapters(trainer.model)
        taken: list[parity.Gradients] = []
        trainer.add_callback(StepWatch(lambda model: taken.append(parity.take_gradients(model))))
        loss = trainer.train().training_loss
        return parity.compare(loss, taken[0], self._setup.reference)

    def train(self, choice: Choice | None, tell: Tell, go: Callable[[], bool]) -> Answer:
        """Run rounds as long as `go` says so, and tell the figures of each."""
        trainer = self._build(choice, is_step=False)
        parity.fill_adapters(trainer.model)
        rounds = 0

        def tell_round(seconds: float) -> None:
            nonlocal rounds
            rounds += 1
            tokens = self._library.useful_tokens(trainer, rounds)
            tell({"seconds": seconds, "tokens": tokens, **peaks()})

        steps = self._library.steps_per_round(self._setup, trainer)
        trainer.add_callback(RoundClock(steps, tell_round, go))
        dtypes = {str(parameter.dtype) for parameter in trainer.model.parameters()}
        seconds = time.perf_counter() - self._started
        tell({"start_seconds": seconds, "dtypes": sorted(dtypes), "steps_per_round": steps})
        trainer.train()
        return {"ended": True}

    def _build(self, choice: Choice | None, *, is_step: bool) -> Any:
        return self._library.build(self._setup, self._way, choice, is_step=is_step)


def peaks() -> dict[str, int]:
    """Return the peak of this process's resident memory, and what its children have now.

    The peak is the kernel's high-water mark; `ru_maxrss` would begin with the parent's.
    Units: bytes.
    """
    children = 0
    for child in psutil.Process().children(recursive=True):
        try:
            children += child.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return {"peak_bytes": peak, "children_bytes": children}
