"""Commands that .ci/image starts: read line by line, and ended with all they have started."""
# ruff: noqa: T201, part of a script that tells what it does

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

Process = subprocess.Popen[str]


def start(
    command: list[str],
    *,
    env: dict[str, str] | None = None,
    stderr: int | None = subprocess.STDOUT,
) -> Process:
    """Start a command in the repository; its output can be read."""
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=env, text=True, stdout=subprocess.PIPE, stderr=stderr
    )


def finish(process: Process, wanted: int = 0, *, shown: Callable[[str], bool] = bool) -> str:
    """Read a process to its end, show the lines that `shown` picks, and return them all.

    An exit code other than the wanted one ends everything.
    """
    lines = []
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.append(line)
            if shown(line):
                print(f"   {line}", end="", flush=True)
    except BaseException:
        end(process)  # before what it has mounted is taken from under it
        raise
    process.wait()
    if process.returncode != wanted:
        last = "".join(lines[-60:])
        sys.exit(f"{last}\nimage: this ended with {process.returncode}, not with {wanted}")
    return "".join(lines)


def end(process: Process) -> None:
    """Ask a process and all it has started to end, and wait until none is left."""
    tree = process_tree(process.pid)
    for pid in tree:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in tree):
        time.sleep(0.1)


def process_tree(pid: int) -> list[int]:
    """Return a process and its descendants, which buildah does not end with itself."""
    children: list[str] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it ended meanwhile
            children += file.read_text().split()
    return [pid, *(one for child in children for one in process_tree(int(child)))]
