"""What this process holds right now: GPU and host memory. GiB is 2^30 bytes."""

from __future__ import annotations

import psutil
import torch

_GIB = 2**30


def memory_metrics(device: torch.device) -> dict[str, float]:
    """Numbers for the metrics line. Host memory is this process's resident set."""
    metrics = {"host_memory_gib": psutil.Process().memory_info().rss / _GIB}
    if device.type == "cuda":
        metrics["gpu_memory_gib"] = torch.cuda.memory_allocated(device) / _GIB
        metrics["gpu_memory_peak_gib"] = torch.cuda.max_memory_allocated(device) / _GIB
    elif device.type == "mps":
        metrics["gpu_memory_gib"] = torch.mps.current_allocated_memory() / _GIB
    return {name: round(value, 3) for name, value in metrics.items()}


def memory_line(device: torch.device) -> str:
    """One line for a person: device name, allocated, reserved, total, free; and the host."""
    host = psutil.virtual_memory()
    resident = psutil.Process().memory_info().rss
    return (
        f"{_device_text(device)}; host: {_gib(resident)} in use here, "
        f"{_gib(host.available)} of {_gib(host.total)} free"
    )


def _device_text(device: torch.device) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return (
            f"{torch.cuda.get_device_name(device)}: "
            f"{_gib(torch.cuda.memory_allocated(device))} allocated, "
            f"{_gib(torch.cuda.memory_reserved(device))} reserved, "
            f"{_gib(total)} total, {_gib(free)} free"
        )
    if device.type == "mps":
        return (
            f"Apple GPU: {_gib(torch.mps.current_allocated_memory())} allocated, "
            f"{_gib(torch.mps.recommended_max_memory())} recommended at most"
        )
    return "no GPU: training on the CPU"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"
