"""The processes below this one: kept together, found, ended, and reaped."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

# Source: linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans(wanted: bool = True) -> None:
    """Let orphans below this process come to it instead of init. Linux; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def ends_with_this_process() -> Callable[[], None] | None:
    """Return what a child runs before it starts, to get SIGTERM when this process dies. Linux."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:  # it died before the question
            os._exit(1)

    return ask


def reap() -> dict[int, int]:
    """Collect every child that has ended, orphans that came here included: pid -> exit code."""
    codes: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return codes
        if pid == 0:
            return codes
        codes[pid] = os.waitstatus_to_exitcode(status)


def living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Return those that run; one that waits to be reaped does not."""
    return [process for process in processes if _runs(process)]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def below(process: psutil.Process) -> list[psutil.Process]:
    """Return every process below this one; none when it is gone."""
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Signal each process that still is the one we know."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            continue


def count_oom_kills() -> int:
    """Return how often the kernel ended a process for want of memory; compare two readings.

    This control group where there is one, else the whole machine. 0 where the kernel does not say.
    """
    for path, key in (
        *((folder / "memory.events", "oom_kill") for folder in _control_groups()),
        (Path("/proc/vmstat"), "oom_kill"),
    ):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return 0


def _control_groups() -> list[Path]:
    """Folders of this process's version 2 control group. Source: man 7 cgroups."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    names = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    return [Path("/sys/fs/cgroup") / name.lstrip("/") for name in names]
