"""What is said about memory: the device's own figures, and the host's."""

from __future__ import annotations

import psutil
import pytest
import torch

from trainer.memory_report import memory_line, memory_metrics

GIB = 2**30


def test_a_line_names_the_device_and_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = memory_line(torch.device("cpu"))
    assert "no GPU" in cpu
    assert f"{psutil.virtual_memory().total / GIB:.2f} GiB free" in cpu
    held = {
        "get_device_name": "NVIDIA A100",
        "memory_allocated": 3 * GIB,
        "memory_reserved": 4 * GIB,
        "mem_get_info": (30 * GIB, 40 * GIB),
    }
    for name, value in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda _=None, value=value: value)
    line = memory_line(torch.device("cuda"))
    for part in ("NVIDIA A100", "3.00 GiB allocated", "4.00 GiB reserved", "40.00 GiB total"):
        assert part in line
    assert "30.00 GiB free" in line
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 2 * GIB)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 8 * GIB)
    line = memory_line(torch.device("mps"))
    assert "Apple GPU: 2.00 GiB allocated, 8.00 GiB recommended" in line


def test_metrics_are_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 5 * GIB)
    found = memory_metrics(torch.device("cuda"))
    assert (found["gpu_memory_gib"], found["gpu_memory_peak_gib"]) == (3, 5)
    resident = psutil.Process().memory_info().rss / GIB
    assert found["host_memory_gib"] == pytest.approx(resident, rel=0.05)
