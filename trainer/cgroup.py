"""What the cgroups of this process, such as a container's, let it use. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

# cgroup v1 writes "no limit" as the largest multiple of the page size below 2^63.
_NO_LIMIT_BYTES = 2**60
# Of a cgroup's memory, v1 and v2: the limit, what is used, and the cache it gives up when short.
_LIMIT_FILES = ("memory.max", "memory.limit_in_bytes")
_USED_FILES = ("memory.current", "memory.usage_in_bytes")
_CACHE_NAMES = ("inactive_file", "total_inactive_file")


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


def memory_available_bytes(root: Path = Path("/")) -> int:
    """Return what this process may still take, of the machine's memory and of its cgroups'."""
    available: int = psutil.virtual_memory().available
    free = cgroup_memory_free_bytes(root)
    return available if free is None else min(available, free)


def _cache_bytes(folder: Path) -> int:
    found = dict(
        line.split(maxsplit=1) for line in _read(folder / "memory.stat").splitlines() if " " in line
    )
    return max((int(found[name]) for name in _CACHE_NAMES if name in found), default=0)


def _number(folder: Path, names: tuple[str, ...]) -> int | None:
    texts = [_read(folder / name) for name in names]
    return next((int(text) for text in texts if text.isdecimal()), None)


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
