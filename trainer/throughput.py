"""Tokens a second, and the share of the device's arithmetic they use."""

from __future__ import annotations

import time

from trainer.data.collate import StepShare
from trainer.flops import ModelFlops

_TERA = 1e12


class Throughput:
    """What was computed since the last reading, by all ranks together.

    There is no padding to leave out: every token a step computes is one of an example.
    """

    def __init__(self, flops: ModelFlops, *, world_size: int, peak: float | None) -> None:
        self.model, self.world_size, self.peak = flops, world_size, peak
        self._start()

    def _start(self) -> None:
        self.tokens, self.labels, self.flops = 0, 0, 0.0
        self.started = time.perf_counter()

    def add(self, share: StepShare) -> None:
        """Count one step."""
        self.tokens += int(share["lengths"].sum())
        self.labels += share["num_labels"]
        self.flops += self.model.of_step(share["lengths"].numpy(), share["num_labels"])

    def leave_out(self, seconds: float) -> None:
        """Do not count time that was no training."""
        self.started += seconds

    def read(self) -> dict[str, float]:
        """Return the rates since the last call. `mfu` only where the device's peak is known.

        Units: `tflops_per_second` is one device's.
        """
        seconds = time.perf_counter() - self.started
        each = self.flops / seconds / self.world_size
        rates = {
            "tokens_per_second": self.tokens / seconds,
            "labelled_tokens_per_second": self.labels / seconds,
            "tflops_per_second": each / _TERA,
        }
        if self.peak is not None:
            rates["mfu"] = each / self.peak
        self._start()
        return rates
