"""When the launcher stops waiting for ranks that wait for one that is gone."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher import rank_watch
from launcher.attempt import Attempt
from launcher.rank_watch import FAILURE_GRACE_SECONDS, RankWatch
from trainer.attempt import RankRecord, record_path
from trainer.run_directory import write_json

ALIVE = psutil.Process().create_time()
GONE = ALIVE - 1000  # this pid was another process then
SAVE_SECONDS = 480.0


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rank_watch, "time", clock)
    return clock


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt.create(tmp_path)


def write(attempt: Attempt, rank: int, created: float, **said: Any) -> None:
    record = RankRecord(
        rank, 2, 2, pid=os.getpid(), host=socket.gethostname(), created=created, **said
    )
    write_json(record_path(attempt.folder, rank), dataclasses.asdict(record))


@pytest.mark.parametrize(
    ("created", "said", "grace"),
    [
        (GONE, {}, FAILURE_GRACE_SECONDS),
        (ALIVE, {"state": "failed", "error": "KeyError"}, FAILURE_GRACE_SECONDS),
        (GONE, {"state": "failed", "error": "PeerLost"}, FAILURE_GRACE_SECONDS),
        (GONE, {"state": "interrupted"}, SAVE_SECONDS),
    ],
    ids=["died", "failed", "lost its peer", "interrupted"],
)
def test_the_others_get_time_to_end_by_themselves(
    created: float, said: dict[str, Any], grace: float, attempt: Attempt, clock: Clock
) -> None:
    watch = RankWatch(attempt, save_seconds=SAVE_SECONDS)
    write(attempt, 0, ALIVE)
    write(attempt, 1, created, **said)
    assert not watch.is_lost()
    clock.now = grace - 0.1
    assert not watch.is_lost()
    clock.now = grace
    assert watch.is_lost()


def test_a_completed_rank_is_not_missed(attempt: Attempt, clock: Clock) -> None:
    watch = RankWatch(attempt, save_seconds=SAVE_SECONDS)
    write(attempt, 0, ALIVE)
    write(attempt, 1, GONE, state="completed")
    assert not watch.is_lost()
    clock.now = 1e6
    assert not watch.is_lost()


def test_a_rank_that_saves_is_left_in_peace_when_another_lost_its_peer(
    attempt: Attempt, clock: Clock
) -> None:
    watch = RankWatch(attempt, save_seconds=SAVE_SECONDS)
    write(attempt, 0, ALIVE)
    write(attempt, 1, GONE, state="interrupted")
    write(attempt, 2, GONE, state="failed", error="PeerLost")
    assert not watch.is_lost()
    clock.now = SAVE_SECONDS - 1
    assert not watch.is_lost()


def test_what_happens_after_the_end_began_is_the_launchers_doing(
    attempt: Attempt, clock: Clock
) -> None:
    watch = RankWatch(attempt, save_seconds=SAVE_SECONDS)
    write(attempt, 0, ALIVE)
    write(attempt, 1, GONE)
    watch.end_begins()
    write(attempt, 0, GONE)
    ends = watch.ends({None: -9})
    assert [end.was_ended_here for end in ends] == [True, False]
    assert [end.exit_code for end in ends] == [None, -9]


def test_all_ranks_of_a_machine_must_be_here_to_be_asked_alone(
    attempt: Attempt, clock: Clock
) -> None:
    watch = RankWatch(attempt, save_seconds=SAVE_SECONDS)
    write(attempt, 0, ALIVE)
    assert not watch.are_all_here()
    write(attempt, 1, ALIVE)
    assert watch.are_all_here()
