"""What machine this is, in words for a report."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "triton",
    "flash-attn",
    "liger-kernel",
    "trl",
)
_QUERY = "name,driver_version,memory.total,memory.used,utilization.gpu,temperature.gpu,power.draw"


def describe_machine() -> dict[str, Any]:
    """Describe the machine without loading torch, so that no memory of the card is taken."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "card": _card(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def memory_gib(machine: dict[str, Any]) -> float:
    """Memory of the card; 0 without one."""
    total = machine["card"].get("memory.total", "0 MiB").split()[0]
    return float(total) / 1024


def _card() -> dict[str, str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        return {}
    first = answer.stdout.splitlines()[0]
    return dict(zip(_QUERY.split(","), map(str.strip, first.split(",")), strict=True))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
