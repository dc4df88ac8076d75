"""What the card can do at best: the ceilings everything else is held against."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import torch

from benchmarks.gpu.clock import time_calls
from benchmarks.gpu.flops import TERA
from benchmarks.gpu.jobs import Job, Result

_GIGA = 1e9


def measure(job: Job, _folder: Path) -> Result:
    """Time a square bf16 matrix product of random numbers, and a copy within the card."""
    device, side = torch.device(job["device"]), job["side"]
    left, right = torch.randn(2, side, side, device=device).bfloat16()
    product = torch.empty_like(left)
    matmul = time_calls(lambda: torch.mm(left, right, out=product), device, warm_up=5, repeats=20)
    source = torch.randint(0, 255, (job["copy_mib"] << 20,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = time_calls(lambda: target.copy_(source), device, warm_up=5, repeats=20)
    return {
        "matmul_seconds": matmul,
        "tflops": 2 * side**3 / median(matmul) / TERA,
        "copy_seconds": copy,
        # Read once and written once.
        "gigabytes_per_second": 2 * source.numel() / median(copy) / _GIGA,
    }
