"""Time on the device and memory on the device. Loads nothing beside torch."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch

GIB = 1 << 30


class Clock:
    """Marks moments without stopping the device; seconds between them are read at the end."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        if not self._is_cuda:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        if self._marks:
            self._marks[-1].synchronize()  # the host stays one step ahead, and no more
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """Time between each mark and the next."""
        if not self._is_cuda:
            return [end - start for start, end in zip(self._marks, self._marks[1:], strict=False)]
        torch.cuda.synchronize()
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return [start.elapsed_time(end) / 1000 for start, end in pairs]


def time_calls(
    call: Callable[[], object], device: torch.device, *, warm_up: int, repeats: int
) -> list[float]:
    """Seconds of each of `repeats` calls."""
    for _ in range(warm_up):
        call()
    clock = Clock(device)
    clock.mark()
    for _ in range(repeats):
        call()
        clock.mark()
    return clock.seconds()


def give_back(device: torch.device) -> None:
    """Free what nothing refers to any more, cycles included, and return it to the card."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def peak(device: torch.device) -> dict[str, float]:
    """Most memory since the last reset; nothing where it is not counted. Unit: GiB."""
    if device.type != "cuda":
        return {}
    torch.cuda.synchronize()
    return {
        "peak_gib": torch.cuda.max_memory_allocated() / GIB,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
    }
