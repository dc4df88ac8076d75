"""A run asked to stop at random moments, whoever is asked: exit 75, saved, gone on with exactly.

The short form asks seven times. The long one (`make chaos`) mixes every engine, target, signal and
moment, of which there are 66:

    RANKZERO_STOPS=66 python -m pytest tests/e2e/test_preemption.py -s

Any number goes for RANKZERO_CHAOS_SEED; without one it is new every time, and told on failure.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.commands import read_json
from tests.e2e.running import (
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

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed runs on Linux"),
]

NUM_STOPS = int(os.environ.get("RANKZERO_STOPS", "0"))
SEED = int(os.environ.get("RANKZERO_CHAOS_SEED", str(time.time_ns() % 10_000)))
MOST_STEPS = 6  # of an attempt, from its first step to the request
STEPS_PER_STOP = 8
ENGINES = ("torchrun", "accelerate", "deepspeed")
TARGETS = ("launcher", "rank 0", "rank 1", "all ranks", "everything")

HANGING = ("hanging", "hanging, writing")


@dataclass(frozen=True)
class Stop:
    """Who is asked to stop, how, and when; `hanging`: twice, because a rank does not answer."""

    engine: str
    target: str
    number: signal.Signals = signal.SIGTERM
    moment: str = "training"


SHORT = (
    Stop("torchrun", "launcher", signal.SIGINT),
    Stop("torchrun", "rank 0"),
    Stop("accelerate", "rank 1"),
    Stop("deepspeed", "rank 0"),
    Stop("deepspeed", "everything"),
    Stop("torchrun", "all ranks", moment="starting"),
    Stop("deepspeed", "launcher", moment="hanging, writing"),
)


def stops(chance: random.Random) -> list[Stop]:
    if not NUM_STOPS:
        return list(SHORT)
    every = [
        Stop(*chosen)
        for chosen in itertools.product(
            ENGINES, TARGETS, (signal.SIGTERM, signal.SIGINT), ("training", "starting")
        )
    ]
    every += [Stop(engine, "launcher", moment=moment) for engine in ENGINES for moment in HANGING]
    chance.shuffle(every)
    return list(itertools.islice(itertools.cycle(every), NUM_STOPS))


@pytest.fixture(name="start")
def start_runs() -> Iterator[Start]:
    with ending_all() as begin:
        yield begin


def targets(live: LiveRun, who: str) -> list[psutil.Process]:
    """Return the processes to ask; empty while they are not there."""
    launcher = psutil.Process(live.process.pid)
    if who == "launcher":
        return [launcher]
    ranks = live.ranks()
    if who in ("all ranks", "everything"):
        is_complete = len(ranks) == 2
        every = ranks if who == "all ranks" else [launcher, *launcher.children(recursive=True)]
        return every if is_complete else []
    rank = live.rank(int(who[-1]))
    return [] if rank is None else [rank]


def ask(live: LiveRun, stop: Stop, chance: random.Random) -> None:
    """Send the request at a random moment."""
    live.until(lambda: targets(live, stop.target), f"{stop.target} was there")
    if stop.moment == "starting":
        latest = time.monotonic() + chance.uniform(0, 8)
        live.until(lambda: live.last_step or time.monotonic() > latest, "training")
    else:
        live.until(lambda: live.last_step, "the first step")
        goal = live.last_step + chance.randrange(MOST_STEPS)
        live.until(lambda: live.last_step >= goal, f"step {goal}")
        live.lives_for(chance.uniform(0, 0.2))
    if stop.moment in HANGING:
        hang(live, 0 if "writing" in stop.moment else 1)
        send(targets(live, stop.target), stop.number)
        assert live.lives_for(1.5), "nobody can save while one rank hangs"
    send(targets(live, stop.target), stop.number)


def hang(live: LiveRun, number: int) -> None:
    """Let a rank answer nothing from now on; rank 0 in the middle of a checkpoint."""
    if number == 0:
        live.until(live.is_writing, "a checkpoint was written")
    rank = live.rank(number)
    assert rank is not None
    rank.suspend()


def has_stopped(live: LiveRun, stop: Stop, told: str) -> None:
    """Check how an attempt ended that was asked to stop."""
    code = live.end()
    print(f"{told} at step {live.last_step}: {code}")
    told = f"{told}\n{live.tail}"
    step = newest_step(live.run)
    assert live.processes() == [], told
    if stop.moment in HANGING:
        assert code == 75, told
        return
    assert live.new_leftovers() == [], told
    saved = re.search(
        rf"stopped by {stop.number.name} after step (\d+) of \d+; saved in", live.said
    )
    if saved is None:
        assert stop.moment == "starting", told
        # Ctrl-C before training is the user's own: 130, as in any command.
        assert code in ((75, 130) if stop.number == signal.SIGINT else (75,)), told
        return
    assert (code, step) == (75, int(saved[1])), told
    assert live.attempt is not None
    ends = [read_json(live.attempt / f"rank-{rank}.json") for rank in (0, 1)]
    ends.append(read_json(live.run / "status.json"))
    assert [(end["state"], end["exit_code"]) for end in ends] == [("interrupted", 75)] * 3, told


def test_a_run_asked_to_stop_again_and_again_ends_bit_for_bit_the_same(
    tmp_path: Path, start: Start
) -> None:
    chance = random.Random(SEED)
    chosen = stops(chance)
    base = make_model_folder(tmp_path / "tiny-llama")
    steps = STEPS_PER_STOP * (len(chosen) + 1)
    config = write_eventful_config(tmp_path, base, steps=steps, zero="zero2")
    straight, run = tmp_path / "straight", tmp_path / "stopped"
    train(config, straight, "torchrun")
    for number, stop in enumerate(chosen):
        told = f"seed {SEED}, stop {number}: {stop.number.name} to {stop.target} "
        told += f"under {stop.engine} while {stop.moment}"
        live = start(config, run, stop.engine)
        ask(live, stop, chance)
        has_stopped(live, stop, told)
    train(config, run, "torchrun")
    assert leftovers(run) == []
    require_same_run(straight, run)
