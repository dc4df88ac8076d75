"""The machine and the libraries a result belongs to."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

from benchmarks.train.processes import ROOT

_OF_INTEREST = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


def describe_machine(threads: int) -> dict[str, Any]:
    """Return processor, memory, system and the commit that was measured."""
    info = _processor()
    flags = info.get("flags", "").split()
    return {
        "processor": info.get("model name", platform.processor()),
        "instructions": [flag for flag in _OF_INTEREST if flag in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": threads,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _processor() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").split("\n\n")[0] if path.is_file() else ""
    pairs = (line.partition(":") for line in lines.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _commit() -> str | None:
    """Return the commit, marked when the tree differs from it; None outside a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
