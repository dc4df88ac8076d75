"""The computer around the GPUs: memory and cores this process may use, disk, /dev/shm."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_GIB = 2**30
# cgroup v1 writes "no limit" as the largest multiple of the page size below 2^63.
_NO_LIMIT_BYTES = 2**60
# Of a cgroup's memory, v1 and v2: the limit, what is used, and the cache it gives up when short.
_LIMIT_FILES = ("memory.max", "memory.limit_in_bytes")
_USED_FILES = ("memory.current", "memory.usage_in_bytes")
_CACHE_NAMES = ("inactive_file", "total_inactive_file")


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
        memory_available_gib=_smaller(memory.available, cgroup_memory_free_bytes(root)) / _GIB,
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


def cgroup_memory_limit_bytes(root: Path) -> int | None:
    """Return the smallest memory limit of the cgroups this process is in; None without one."""
    limits = [_number(folder, _LIMIT_FILES) for folder in _folders(root, "memory")]
    smallest = min((limit for limit in limits if limit is not None), default=_NO_LIMIT_BYTES)
    return smallest if smallest < _NO_LIMIT_BYTES else None


def cgroup_memory_free_bytes(root: Path) -> int | None:
    """Return what the tightest of its cgroups still lets this process take; None without one."""
    free = []
    for folder in _folders(root, "memory"):
        limit, used = _number(folder, _LIMIT_FILES), _number(folder, _USED_FILES)
        if limit is not None and limit < _NO_LIMIT_BYTES:
            held = max((used or 0) - _cache_bytes(folder), 0)
            free.append(max(limit - held, 0))
    return min(free, default=None)


def _cache_bytes(folder: Path) -> int:
    found = dict(
        line.split(maxsplit=1) for line in _read(folder / "memory.stat").splitlines() if " " in line
    )
    return max((int(found[name]) for name in _CACHE_NAMES if name in found), default=0)


def _number(folder: Path, names: tuple[str, ...]) -> int | None:
    texts = [_read(folder / name) for name in names]
    return next((int(text) for text in texts if text.isdecimal()), None)


def _smaller(number: int, other: int | None) -> int:
    return number if other is None else min(number, other)


def cgroup_cpu_quota(root: Path) -> float | None:
    """Return the smallest CPU quota in cores of the cgroups this process is in; None without."""
    quotas = []
    for folder in _folders(root, "cpu"):
        words = _read(folder / "cpu.max").split()
        if not words:
            words = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and all(word.isdecimal() for word in words):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and of all above it, v1 and v2.

    A container without a cgroup namespace names its group by the host's path but has the group's
    own files at the top of the mount: walking up from what is there covers both.
    """
    mount = root / "sys" / "fs" / "cgroup"
    for line in _read(root / "proc" / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            bases = [mount, mount / "unified"]
        elif controller in names.split(","):
            bases = [mount / names, mount / controller]
        else:
            continue
        for base in bases:
            folder = base / path.lstrip("/")
            yield from (place for place in (folder, *folder.parents) if place.is_relative_to(base))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
