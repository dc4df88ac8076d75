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
SAVED = {**STOPPED, "message": "stopped by SIGTERM after step 41; checkpoints/step-000041 saved"}
ECHO = {**STOPPED, "message": "stopped on request, while working with another rank"}
CTRL_C = {**STOPPED, "exit_code": 130, "error": "KeyboardInterrupt", "message": "stopped by SIGINT"}


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
        error = verdict_of(*ranks, **asked, how_to_go_on="again")
        assert type(error) is Interrupted
        assert (error.what, error.exit_code, error.fix) == ("stopped by SIGTERM", 75, "again")
    assert verdict_of(end(0, STOPPED), end(1, FAILED), **asked).exit_code == 4


@pytest.mark.parametrize(
    ("ranks", "request_", "code"),
    [
        ([SAVED, SAVED], signal.SIGINT, 75),
        ([STOPPED, CTRL_C], signal.SIGINT, 75),
        ([CTRL_C, CTRL_C], signal.SIGINT, 130),
        ([], signal.SIGINT, 130),
        ([], signal.SIGHUP, 75),
        ([CTRL_C, CTRL_C], None, 130),
    ],
    ids=["saved", "one of them", "before training", "nobody said", "terminal closed", "not by us"],
)
def test_ctrl_c_is_one_only_before_there_is_something_to_save(
    ranks: list[dict[str, Any]], request_: signal.Signals | None, code: int
) -> None:
    requests = () if request_ is None else (request_,)
    ends = [end(rank, said) for rank, said in enumerate(ranks)]
    assert verdict_of(*ends, requests=requests).exit_code == code


@pytest.mark.parametrize(
    ("ranks", "what"),
    [
        ([(SAVED, 20), (STOPPED, 10)], SAVED["message"]),
        ([(ECHO, 10), (SAVED, 20)], SAVED["message"]),
        ([(ECHO, 10), (ECHO, 20)], "stopped by SIGHUP"),
        ([(STOPPED, 20), (SAVED, 10)], "stopped by SIGTERM"),
    ],
    ids=["rank 0 first", "who knows more", "nobody knows", "rank 0 though it is later"],
)
def test_an_interruption_is_told_in_the_words_of_the_rank_that_knows(
    ranks: list[tuple[dict[str, Any], float]], what: str
) -> None:
    ends = [end(rank, said, at=at) for rank, (said, at) in enumerate(ranks)]
    assert verdict_of(*ends, requests=(signal.SIGHUP,)).what == what


def test_ranks_asked_by_somebody_else_are_interrupted_too() -> None:
    # One rank got SIGTERM, all saved; torchrun, Accelerate and DeepSpeed call that a failure.
    error = verdict_of(end(0, SAVED), end(1, SAVED, exit_code=75), code=1)
    assert (type(error), error.what, error.exit_code) == (Interrupted, SAVED["message"], 75)
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
