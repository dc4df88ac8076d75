"""A request to stop is never lost, wherever the signal arrives."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import psutil
import pytest
import torch

from trainer.data.collate import make_loader

# Each script sends itself SIGTERM somewhere and ends with the exit code a user sees.
START = """
import os, signal, sys, gc
from trainer import interruption
from trainer.entry import run_entry
def stop(*_):
    os.kill(os.getpid(), signal.SIGTERM)
"""
LOST_IN_A_FORK_HOOK = """
def main(_):
    os.register_at_fork(after_in_parent=stop)
    child = os.fork()
    if not child:
        os._exit(0)
    print("went on", flush=True)
    interruption.stop_if_requested()
sys.exit(run_entry(main, []))
"""
WRAPPED = """
def main(_):
    try:
        stop()
    except BaseException as error:
        raise ModuleNotFoundError("Could not import module") from error
sys.exit(run_entry(main, []))
"""
AT_ONCE = """
def main(_):
    stop()
    print("went on", flush=True)
sys.exit(run_entry(main, []))
"""
DEFERRED = """
def main(_):
    interruption.defer()
    stop()
    stop()
    print("went on", flush=True)
    interruption.allow()
    print("too far", flush=True)
sys.exit(run_entry(main, []))
"""


@pytest.mark.parametrize(
    ("script", "printed"),
    [(LOST_IN_A_FORK_HOOK, "went on\n"), (WRAPPED, ""), (AT_ONCE, ""), (DEFERRED, "went on\n")],
    ids=["in a fork hook", "wrapped by a library", "at once", "deferred"],
)
def test_a_request_ends_the_process_with_75(script: str, printed: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", START + script], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 75, ended.stderr
    assert ended.stdout == printed
    assert "stopped by SIGTERM" in ended.stderr


class Readers(torch.utils.data.Dataset[int]):
    """Tells which process reads each item."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, _: int) -> int:
        return os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells who sent a signal")
def test_a_request_to_every_process_leaves_data_workers_to_their_rank() -> None:
    readers = iter(make_loader(Readers(), num_workers=1, pin_memory=False))
    pid = next(readers)
    worker = psutil.Process(pid)
    subprocess.run(["kill", "-TERM", str(pid)], check=True)  # somebody else than its parent
    assert list(itertools.islice(readers, 50)) == [pid] * 50
    assert worker.is_running()
    worker.terminate()
    assert worker.wait(timeout=60) == 0
