"""Ranks, engine and launcher killed (SIGKILL) at random moments: the run ends as if never touched.

The short form kills five times. The long one (`make chaos`):

    RANKZERO_CHAOS_KILLS=40 RANKZERO_CHAOS_ZERO=zero3 python -m pytest tests/e2e/test_chaos.py -s

Any number goes for RANKZERO_CHAOS_SEED; without one it is new every time, and told on failure.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.running import (
    LOOK_SECONDS,
    LiveRun,
    Start,
    ending_all,
    leftovers,
    newest_step,
    send,
    train,
    write_eventful_config,
)
from tests.resuming import require_same_run
from tests.tiny import make_model_folder
from trainer.errors import TrainingFailed

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed runs on Linux"),
]

NUM_KILLS = int(os.environ.get("RANKZERO_CHAOS_KILLS", "5"))
SEED = int(os.environ.get("RANKZERO_CHAOS_SEED", str(time.time_ns() % 10_000)))
ZERO = os.environ.get("RANKZERO_CHAOS_ZERO", "zero2")  # empty: DDP
IS_LONG = NUM_KILLS > 5
ENGINES = ("torchrun", "accelerate", "deepspeed")
MOST_STEPS = 6  # of an attempt, from its first step to the blow
DELAYS = {"writing": (0.0, 0.0, 0.0, 0.01, 0.03), "training": (0.0, 0.02, 0.05, 0.1, 0.2)}
# Who is killed, and when; the short form takes the first four. One more comes at the end.
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


@pytest.fixture(name="start")
def start_runs() -> Iterator[Start]:
    with ending_all() as begin:
        yield begin


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
    """Kill at a random moment; tell whether a checkpoint was being written just then."""
    if when == "starting":
        live.until(lambda: victims(live, who), f"{who} was there")
        latest = time.monotonic() + chance.uniform(0, 8)
        live.until(lambda: live.last_step or time.monotonic() > latest, "training")
    elif when == "finishing":
        while not (live.run / "adapter").exists() and live.lives_for(LOOK_SECONDS):
            pass  # it may be quicker, and end: then nothing is left to kill
        live.lives_for(chance.uniform(0, 0.3))
    else:
        live.until(lambda: live.last_step, "the first step")
        goal = live.last_step + chance.randrange(MOST_STEPS)
        live.until(lambda: live.last_step >= goal, f"step {goal}")
        if when == "writing":
            live.until(live.is_writing, "a checkpoint was written")
        live.lives_for(chance.choice(DELAYS[when]))
    chosen = victims(live, who) if live.lives_for(0) else []
    is_inside = live.is_writing()
    send(chosen[:1], signal.SIGKILL)
    if who == "launcher, then rank 0":
        time.sleep(chance.uniform(0, 0.1))  # rank 0 is about to stop and save
    send(chosen[1:], signal.SIGKILL)
    return is_inside


def test_a_run_killed_again_and_again_ends_bit_for_bit_the_same(
    tmp_path: Path, start: Start
) -> None:
    chance = random.Random(SEED)
    base = make_model_folder(tmp_path / "tiny-llama")
    steps = 10 * (NUM_KILLS + 1)
    config = write_eventful_config(tmp_path, base, steps=steps, zero=ZERO or None)
    straight, run = tmp_path / "straight", tmp_path / "killed"
    train(config, straight, ENGINES[0])
    blows = [*itertools.islice(itertools.cycle(BLOWS), NUM_KILLS - 1), ("rank 0", "finishing")]
    figures: Counter[str] = Counter()
    step = 0
    for number, (who, when) in enumerate(blows):
        live = start(config, run, ENGINES[number % len(ENGINES)] if IS_LONG else ENGINES[0])
        is_inside = strike(live, who, when, chance)
        code = live.end()
        told = f"seed {SEED}, blow {number}: {who} while {when}, at step {live.last_step}"
        told += ", inside a write" if is_inside else ""
        print(f"{told}: {code}")
        figures.update((who, when, *(["inside a write"] if is_inside else [])))
        if code == -signal.SIGKILL:  # the launcher was killed, and ranks may be at work
            continue
        expected = (TrainingFailed.exit_code, *([0] if when == "finishing" else []))
        assert code in expected, f"{told}\n{live.tail}"
        before, step = step, newest_step(run)
        assert step >= before, told
    train(config, run, ENGINES[0])
    print(f"seed {SEED}, {len(blows)} kills: {dict(figures)}")
    assert leftovers(run) == [], f"seed {SEED}"
    require_same_run(straight, run)
