"""Which rank is blamed, and with which exit code."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from launcher.diagnosis import Evidence, RankEnd, exit_codes_in, judge, last_lines
from trainer.attempt import RankRecord
from trainer.errors import ConfigError, Interrupted, RankZeroError, TrainingFailed

DONE = {"state": "completed", "exit_code": 0, "ended": 100.0}
LOST = {"state": "failed", "exit_code": 4, "error": "PeerLost", "message": "a peer went away"}
FAILED = {
    "state": "failed",
    "exit_code": 4,
    "error": "TrainingFailed",
    "message": "out of memory",
    "rule": "it must fit",
    "remedy": "less",
}
BUG = {"state": "failed", "exit_code": 1, "error": "KeyError", "message": "'x'"}
STOPPED = {
    "state": "interrupted",
    "exit_code": 75,
    "error": "Interrupted",
    "message": "stopped by SIGTERM",
}


def end(rank: int, said: dict[str, Any] | None = None, *, at: float = 50.0, **how: Any) -> RankEnd:
    ended = {} if said is None else {"ended": at, **said}
    record = RankRecord(rank, 2, 2, pid=100 + rank, host="h", created=1.0, **ended)
    return RankEnd(record, last_seen=at, **how)


def verdict_of(*ranks: RankEnd, code: int = 1, **evidence: Any) -> RankZeroError:
    verdict = judge(ranks, Evidence("an engine", code, **evidence))
    assert verdict is not None
    return verdict.error


def test_a_run_whose_ranks_all_completed_is_complete_whatever_the_engine_says() -> None:
    ranks = [end(0, DONE), end(1, DONE)]
    assert judge(ranks, Evidence("e", 0)) is None
    assert judge(ranks, Evidence("e", 1)) is None
    assert judge(ranks, Evidence("e", 1, requests=(signal.SIGTERM,))) is None


@pytest.mark.parametrize(
    ("ranks", "what"),
    [
        ([end(0, LOST, at=10), end(1, FAILED, at=20)], "rank 1: out of memory"),
        ([end(0, LOST, at=10), end(1, at=20, exit_code=-9)], "rank 1 (pid 101, host h) was killed"),
        ([end(0, STOPPED, at=10), end(1, at=20, exit_code=-11)], "was killed by SIGSEGV"),
        ([end(0, DONE), end(1, exit_code=0)], "rank 1 (pid 101, host h) ended with code 0 before"),
        ([end(0, LOST), end(1)], "rank 1 (pid 101, host h) vanished"),
        ([end(0, FAILED, at=20), end(1, at=10, exit_code=-9)], "rank 1 (pid 101, host h) was kill"),
        ([end(0, FAILED, at=10), end(1, at=20, exit_code=-9)], "rank 0: out of memory"),
        ([end(0, BUG, at=10), end(1, STOPPED, at=20)], "rank 0: KeyError: 'x'"),
        ([end(0, at=10, was_ended_here=True), end(1, FAILED, at=20)], "rank 1: out of memory"),
    ],
)
def test_the_first_rank_that_failed_by_itself_is_the_cause(ranks: list[RankEnd], what: str) -> None:
    error = verdict_of(*ranks)
    assert what in error.what
    assert type(error) is TrainingFailed
    assert error.exit_code == 4


def test_a_rank_keeps_its_own_words() -> None:
    error = verdict_of(end(0, LOST), end(1, FAILED))
    assert (error.rule, error.fix) == ("it must fit", "less")


def test_what_every_rank_says_is_no_ranks_own() -> None:
    wrong = {**FAILED, "exit_code": 2, "error": "ConfigError", "message": "no such file"}
    error = verdict_of(end(0, wrong), end(1, wrong))
    assert type(error) is ConfigError
    assert (error.what, error.exit_code) == ("no such file", 2)
    assert verdict_of(end(0, BUG), end(1, BUG)).exit_code == 1


def test_a_peer_lost_elsewhere_is_told_when_nothing_else_is_known() -> None:
    assert "a peer went away" in verdict_of(end(0, LOST), end(1, LOST)).what


def test_the_out_of_memory_killer_is_named_only_with_evidence() -> None:
    killed = end(1, exit_code=-9)
    assert "out-of-memory killer" in verdict_of(end(0, LOST), killed, was_oom=True).what
    assert "out-of-memory" not in verdict_of(end(0, LOST), killed).what
    crashed = end(1, exit_code=-11)
    assert "SIGSEGV" in verdict_of(end(0, LOST), crashed, was_oom=True).what


def test_a_request_to_stop_is_no_failure_unless_one_happened() -> None:
    asked = {"requests": (signal.SIGTERM,)}
    for ranks in ([end(0, STOPPED), end(1, LOST)], [end(0, STOPPED), end(1, exit_code=-15)], []):
        error = verdict_of(*ranks, **asked)
        assert type(error) is Interrupted
        assert (error.what, error.exit_code) == ("stopped by SIGTERM", 75)
    assert verdict_of(end(0, STOPPED), end(1, FAILED), **asked).exit_code == 4
    assert verdict_of(end(0, STOPPED), requests=(signal.SIGINT,)).exit_code == 130


def test_ranks_asked_by_somebody_else_are_interrupted_too() -> None:
    assert verdict_of(end(0, STOPPED), end(1, STOPPED)).exit_code == 75
    # DeepSpeed's runner dies of the signal itself.
    assert verdict_of(end(0, STOPPED), end(1, STOPPED), code=-15).exit_code == 75


def test_an_engine_that_is_killed_is_the_cause_of_what_follows() -> None:
    error = verdict_of(end(0, STOPPED), end(1, STOPPED), code=-9)
    assert (error.what, error.exit_code) == (
        "an engine was killed by SIGKILL, and no rank said why",
        4,
    )


def test_an_engine_without_ranks_has_failed_even_with_code_0() -> None:
    assert "ended with code 0" in verdict_of(code=0).what


def test_exit_codes_are_found_in_what_engines_print() -> None:
    torchrun = (
        "Failures:\n[1]:\n  exitcode  : -15 (pid: 100) (SIGTERM)\n"
        "Root Cause (first observed failure):\n[0]:\n  exitcode  : -9 (pid: 101)  (SIGKILL)\n"
    )
    assert exit_codes_in(torchrun, [100, 101, 102]) == {100: -15, 101: -9, 102: 0}
    deepspeed = "[launch.py] Process 7 exits successfully.\n['a'] exits with return code = -9\n"
    assert exit_codes_in(deepspeed, [7, 8]) == {7: 0, None: -9}
    assert exit_codes_in("step 1/6", [7]) == {}


def test_the_last_lines_that_say_something() -> None:
    assert last_lines("a\n\n" + "b\n" * 20 + "\n \nc\n") == ["b"] * 7 + ["c"]
