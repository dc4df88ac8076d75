"""The computer around the GPUs: memory and cores this process may use, disk, /dev/shm."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from trainer.cgroup import cgroup_cpu_quota, cgroup_memory_limit_bytes, memory_available_bytes

_GIB = 2**30


@dataclass(frozen=True)
class HostFacts:
    """What this machine offers to a process like this one."""

    system: str
    machine: str
    macos_version: str
    memory_gib: float
    memory_source: str
    memory_available_gib: float
    cpu_cores: float
    cores_source: str
    bf16: bool
    shared_memory_gib: float | None
    disk_free_gib: float
    disk_path: Path


def read_host(output: Path, root: Path = Path("/")) -> HostFacts:
    """Read what this process may use. `root` is where /proc and /sys are looked for."""
    memory = psutil.virtual_memory()
    limit = cgroup_memory_limit_bytes(root)
    is_limited = limit is not None and limit < memory.total
    cores, cores_source = _cores(root)
    disk = existing_part_of(output)
    shared = root / "dev" / "shm"
    return HostFacts(
        system=platform.system(),
        machine=platform.machine(),
        macos_version=platform.mac_ver()[0],
        memory_gib=(limit if is_limited and limit else memory.total) / _GIB,
        memory_source="the cgroup's memory limit" if is_limited else "the machine's RAM",
        memory_available_gib=memory_available_bytes(root) / _GIB,
        cpu_cores=cores,
        cores_source=cores_source,
        bf16=_has_native_bf16(root),
        shared_memory_gib=shutil.disk_usage(shared).total / _GIB if shared.is_dir() else None,
        disk_free_gib=shutil.disk_usage(disk).free / _GIB,
        disk_path=disk,
    )


def existing_part_of(path: Path) -> Path:
    """Return the closest folder above a path that is there already."""
    absolute = path.absolute()
    return next(folder for folder in (absolute, *absolute.parents) if folder.exists())


def _cores(root: Path) -> tuple[float, str]:
    if sys.platform == "linux":
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    quota = cgroup_cpu_quota(root)
    if quota is not None and quota < allowed:
        return quota, "the cgroup's CPU quota"
    is_part = allowed < (os.cpu_count() or 1)
    return float(allowed), "the process's CPU affinity" if is_part else "the machine's cores"


def _has_native_bf16(root: Path) -> bool:
    try:
        text = (root / "proc" / "cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return cpu_has_bf16(text)


def cpu_has_bf16(cpuinfo: str) -> bool:
    """Tell whether an x86 processor computes in bfloat16, by trainer.precision's rule. PURE."""
    for line in cpuinfo.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return not {"amx_tile", "avx512_bf16"}.isdisjoint(flags.split())
    return False
