"""A run asked to stop at random moments, whoever is asked: exit 75, saved, gone on with exactly.

A long form asks RANKZERO_STOPS times, with every engine, target, signal and moment:

    RANKZERO_STOPS=60 RANKZERO_CHAOS_SEED=7 python -m pytest tests/e2e/test_preemption.py -s
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
STEPS_PER_STOP = 12
ENGINES = ("torchrun", "accelerate", "deepspeed")
TARGETS = ("launcher", "rank 0", "rank 1", "all ranks", "everything")


@dataclass(frozen=True)
class Stop:
    """Who is asked to stop, how, and when."""

    engine: str
    target: str
    number: signal.Signals = signal.SIGTERM
    moment: str = "training"


SHORT = (
    Stop("torchrun", "launcher"),
    Stop("accelerate", "rank 1"),
    Stop("deepspeed", "all ranks"),
    Stop("deepspeed", "launcher", signal.SIGINT),
    Stop("torchrun", "rank 0", moment="starting"),
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
    send(targets(live, stop.target), stop.number)


def has_stopped(live: LiveRun, stop: Stop, told: str) -> None:
    """Check how an attempt ended that was asked to stop."""
    code = live.end()
    print(f"{told} at step {live.last_step}: {code}")
    told = f"{told}\n{live.tail}"
    assert live.processes() == [], told
    assert leftovers(live.run) == [], told
    saved = re.search(
        rf"stopped by {stop.number.name} after step (\d+) of \d+; saved in", live.said
    )
    if saved is None:
        assert stop.moment == "starting", told
        # Ctrl-C before training is the user's own: 130, as in any command.
        allowed = (75, 130) if stop.number == signal.SIGINT else (75,)
        assert code in allowed, told
        newest_step(live.run)
    else:
        assert code == 75, told
        assert newest_step(live.run) == int(saved[1]), told
    if live.attempt is not None and stop.moment == "training":
        records = [read_json(live.attempt / f"rank-{rank}.json") for rank in (0, 1)]
        assert [(r["state"], r["exit_code"]) for r in records] == [("interrupted", 75)] * 2, told
        status = read_json(live.run / "status.json")
        assert (status["state"], status["exit_code"]) == ("interrupted", 75), told


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
    require_same_run(straight, run)


@pytest.mark.parametrize("when", ["training", "writing"])
def test_a_second_request_ends_even_a_run_that_hangs_and_harms_nothing(
    when: str, tmp_path: Path, start: Start
) -> None:
    base = make_model_folder(tmp_path / "tiny-llama")
    config = write_eventful_config(tmp_path, base, steps=20, zero=None)
    straight, run = tmp_path / "straight", tmp_path / "stopped"
    train(config, straight, "torchrun")
    live = start(config, run, "torchrun")
    live.until(lambda: live.last_step >= 3, "step 3")
    if when == "writing":
        live.until(live.is_writing, "a checkpoint was written")
    hanging = live.rank(0 if when == "writing" else 1)
    assert hanging is not None
    send([hanging], signal.SIGSTOP)
    live.process.send_signal(signal.SIGTERM)
    assert live.lives_for(1.5), "nobody can save while one rank hangs"
    live.process.send_signal(signal.SIGTERM)
    assert live.end() == 75, live.tail
    assert live.processes() == [], live.tail
    step = newest_step(run)
    assert step >= 2
    train(config, run, "torchrun")
    assert leftovers(run) == []
    require_same_run(straight, run)
