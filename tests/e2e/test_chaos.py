"""Ranks, engine and launcher killed (SIGKILL) at random moments: the run ends as if never touched.

The short form kills five times. The long one (`make chaos`):

    RANKZERO_CHAOS_KILLS=40 RANKZERO_CHAOS_SEED=7 python -m pytest tests/e2e/test_chaos.py -s
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.e2e.running import LiveRun, Start, ending_all, leftovers, newest_step, send, train
from tests.e2e.running import write_eventful_config
from tests.resuming import require_same_run
from tests.tiny import make_model_folder

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed runs on Linux"),
]

NUM_KILLS = int(os.environ.get("RANKZERO_CHAOS_KILLS", "5"))
SEED = int(os.environ.get("RANKZERO_CHAOS_SEED", str(time.time_ns() % 10_000)))
ZERO = os.environ.get("RANKZERO_CHAOS_ZERO", "zero2")
ENGINES = ("torchrun", "accelerate", "deepspeed")
MOST_STEPS = 6  # of an attempt before the blow
# Who is killed, and when. The short form takes the first five; the long one all, again and again.
BLOWS = (
    ("rank 0", "writing"),
    ("launcher", "writing"),
    ("rank 1", "training"),
    ("everything", "training"),
    ("launcher", "starting"),
    ("rank 0", "training"),
    ("launcher", "training"),
    ("rank 1", "writing"),
    ("engine", "training"),
    ("rank 0", "starting"),
    ("everything", "writing"),
    ("rank 0", "writing"),
    ("launcher, then rank 0", "training"),
    ("rank 1", "starting"),
    ("engine", "starting"),
)


def victims(live: LiveRun, who: str) -> list[psutil.Process]:
    """Return the processes to kill, first things first; empty while they are not there."""
    launcher = psutil.Process(live.process.pid)
    if who == "launcher":
        return [launcher]
    if who == "engine":
        engine = live.engine()
        return [] if engine is None else [engine]
    if who == "everything":
        return [launcher, *launcher.children(recursive=True)]
    rank = live.rank(int(who[-1]))
    if rank is None:
        return []
    return [launcher, rank] if who.startswith("launcher") else [rank]


def strike(live: LiveRun, who: str, when: str, chance: random.Random) -> bool:
    """Kill at a random moment; false when the run was quicker."""
    if when == "starting":
        live.until(lambda: victims(live, who), f"{who} was there")
        live.lives_for(chance.uniform(0, 8))
    else:
        live.until(lambda: live.last_step, "the first step")
        goal = live.last_step + chance.randrange(MOST_STEPS)
        live.until(lambda: live.last_step >= goal, f"step {goal}")
        if when == "writing":
            live.until(live.is_writing, "a checkpoint was written")
            live.lives_for(chance.choice((0.0, 0.0, 0.01, 0.03)))
        else:
            live.lives_for(chance.uniform(0, 0.2))
    is_inside = live.is_writing()
    chosen = victims(live, who)
    send(chosen[:1], signal.SIGKILL)
    if who == "launcher, then rank 0":
        # It has been asked to save by now.
        psutil.wait_procs([], timeout=chance.uniform(0, 0.1))
    send(chosen[1:], signal.SIGKILL)
    return is_inside


def test_a_run_that_is_killed_again_and_again_ends_bit_for_bit_the_same(
    tmp_path: Path, start: Start
) -> None:
    ...
