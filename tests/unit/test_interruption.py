"""A request to stop is never lost, wherever the signal arrives."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
    [(LOST_IN_A_FORK_HOOK, "went on\n"), (AT_ONCE, ""), (DEFERRED, "went on\n")],
    ids=["in a fork hook", "at once", "deferred"],
)
def test_a_request_ends_the_process_with_75(script: str, printed: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", START + script], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 75, ended.stderr
    assert ended.stdout == printed
    assert "stopped by SIGTERM" in ended.stderr
