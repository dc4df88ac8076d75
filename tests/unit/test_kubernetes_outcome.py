"""The end of a run on a cluster is the error, and the exit code, that it would have been here."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.kubernetes.client.observe import observe
from launcher.kubernetes.client.outcome import judge, read_last_word
from tests.kubernetes_objects import Object, last_word, make_job, make_pod, terminated, unscheduled
from trainer.errors import (
    ConfigError,
    EnvironmentProblem,
    GateFailed,
    OutOfMemory,
    RankZeroError,
    TrainingFailed,
)


def failed(*pods: Object, reason: str = "BackoffLimitExceeded", message: str = "") -> RankZeroError:
    error = judge(observe(make_job(condition=("Failed", reason, message)), [], pods))
    assert error is not None
    return error


def test_a_complete_run_is_no_error() -> None:
    job = make_job(condition=("Complete", "", ""))
    assert judge(observe(job, [], [make_pod(terminated(0))])) is None


@pytest.mark.parametrize(
    ("code", "name", "expected"),
    [
        (1, "ValueError", RankZeroError),
        (2, "ConfigError", ConfigError),
        (3, "EnvironmentProblem", EnvironmentProblem),
        (4, "TrainingFailed", TrainingFailed),
        (4, "OutOfMemory", OutOfMemory),
        (5, "GateFailed", GateFailed),
    ],
)
def test_a_container_ends_with_its_own_error(code: int, name: str, expected: type[Any]) -> None:
    pod = make_pod(terminated(code, last_word(code, name, "what happened", "do that")))
    error = failed(pod)
    assert type(error) is expected
    assert error.exit_code == code
    assert "what happened" in error.what
    assert error.fix == "do that"
    assert pod["metadata"]["name"] in error.rule


def test_a_name_that_does_not_fit_the_code_is_not_believed() -> None:
    assert failed(make_pod(terminated(3, last_word(4, "OutOfMemory", "x")))).exit_code == 3


def test_an_error_that_was_only_printed_is_taken_apart() -> None:
    # terminationMessagePolicy FallbackToLogsOnError: the last lines of the log.
    log = (
        "profile cpu\nerror: no such file\n  in line two\n  rule: files are there\n  fix:  copy it"
    )
    word = read_last_word(log)
    assert word.what == "no such file\n  in line two"
    assert (word.rule, word.fix) == ("files are there", "copy it")
    error = failed(make_pod(terminated(2, log)))
    assert (type(error), error.fix) == (ConfigError, "copy it")


def test_other_last_words_are_shown_as_they_are() -> None:
    error = failed(make_pod(terminated(1, "Traceback:\nModuleNotFoundError: No module named x")))
    assert "No module named x" in error.what
    assert error.exit_code == 1


def test_the_first_cause_is_not_a_lost_peer() -> None:
    lost = last_word(4, "PeerLost", "rank 1 is gone")
    out = last_word(4, "OutOfMemory", "out of memory on rank 8")
    pods = [
        make_pod(terminated(4, lost, at="2026-01-01T10:05:00Z"), index=0),
        make_pod(terminated(4, out, at="2026-01-01T10:05:09Z"), index=1),
        make_pod(terminated(75, at="2026-01-01T10:04:00Z"), index=2),
    ]
    error = failed(*pods)
    assert type(error) is OutOfMemory
    assert "rank 8" in error.what
    assert error.rule.startswith("node 1")


def test_the_last_try_counts() -> None:
    first = make_pod(terminated(4, last_word(4, "TrainingFailed", "the first")), attempt=1)
    late = make_pod(
        terminated(4, last_word(4, "TrainingFailed", "the last"), at="2026-01-01T11:00:00Z"),
        attempt=2,
    )
    assert failed(first, late).what == "the last"


def test_an_exit_code_that_fails_the_job_at_once_is_the_cause() -> None:
    pods = [
        make_pod(terminated(4, last_word(4, "TrainingFailed", "rank 0 died")), index=0),
        make_pod(
            terminated(3, last_word(3, "EnvironmentProblem", "disk"), at="2026-01-01T11:00:00Z"),
            index=1,
        ),
    ]
    assert failed(*pods, reason="PodFailurePolicy").what == "disk"


def test_killed_for_its_memory() -> None:
    error = failed(make_pod(terminated(137, reason="OOMKilled")))
    assert type(error) is OutOfMemory
    assert "host memory" in error.fix
    killed = failed(make_pod(terminated(137)))
    assert type(killed) is TrainingFailed


def test_a_deadline_tells_what_the_run_waited_for() -> None:
    error = failed(reason="DeadlineExceeded", message="was active too long")
    assert type(error) is EnvironmentProblem
    assert "deadline" in error.what


def test_without_pods_the_jobs_own_word_is_all() -> None:
    error = failed(message="Job has reached the specified backoff limit")
    assert error.exit_code == 3
    assert "backoff limit" in error.what
    assert "attempts/" in error.fix


def test_a_pod_that_never_ran_is_no_cause() -> None:
    pending = make_pod(machine=None, conditions=(unscheduled("no"),))
    assert "backoff" in failed(pending, message="backoff limit").what


def test_a_pod_that_was_taken_away() -> None:
    status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory"}
    error = failed(make_pod(status=status))
    assert error.exit_code == 3
    assert "low on memory" in error.what
