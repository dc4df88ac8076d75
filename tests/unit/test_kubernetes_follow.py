"""Following a run: its log without a gap, the way through a lost connection, and the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from launcher.kubernetes.client.connection import Connection
from launcher.kubernetes.client.follow import coming_back, follow
from launcher.kubernetes.client.log_lines import LogLines
from launcher.kubernetes.client.node_log import NodeLog
from launcher.kubernetes.client.pace import Pace
from launcher.kubernetes.client.reading import read_state
from launcher.kubernetes.client.refusal import Unreachable
from tests.kubernetes_objects import (
    NAME,
    FakeApi,
    last_word,
    make_job,
    make_pod,
    refusal,
    running,
    terminated,
    waiting,
)
from trainer.errors import EnvironmentProblem, Interrupted, RankZeroError

PACE = Pace(poll_seconds=0.0, patience=3)
FIRST = f"{NAME}-0-1"


class Run:
    """A run whose cluster changes before each look, and what was shown of it."""

    def __init__(self, *acts: Callable[[FakeApi], None]) -> None:
        self.api = FakeApi(make_job())
        self.acts = list(acts)
        self.out: list[str] = []
        self.said: list[str] = []
        self.api.before_get = self._act

    def _act(self) -> None:
        if self.acts:
            self.acts.pop(0)(self.api)

    def follow(self) -> RankZeroError | None:
        log = NodeLog(self.api, write=self.out.append)
        return follow(self.api, "Job", NAME, log=log, pace=PACE, say=self.said.append)


def line(second: int, text: str) -> str:
    return f"2026-01-01T10:00:{second:02}.000000001Z {text}"


def pod(state: object, attempt: int = 1, log: tuple[str, ...] = ()) -> Callable[[FakeApi], None]:
    def act(api: FakeApi) -> None:
        made = make_pod(state, attempt=attempt)  # type: ignore[arg-type]
        api.put(made)
        api.logs[made["metadata"]["name"]] = list(log)

    return act


def ends(kind: str, reason: str = "") -> Callable[[FakeApi], None]:
    return lambda api: api.put(make_job(condition=(kind, reason, "")))


def test_a_run_is_followed_across_its_pods_to_the_end() -> None:
    one = (line(1, "step 1"), line(3, "step 2"))
    two = (line(30, "going on from step 2"), line(31, "step 3"))
    run = Run(
        pod(waiting("ContainerCreating")),
        pod(running(), log=one[:1]),
        pod(terminated(75), log=one),
        pod(running(), attempt=2, log=two[:1]),
        pod(terminated(0), attempt=2, log=two),
        ends("Complete"),
    )
    assert run.follow() is None
    assert run.out == ["step 1", "step 2", "going on from step 2", "step 3"]
    assert run.api.logs_read.count(FIRST) == 2  # a pod that is over is read to its end, and left
    assert run.said == [
        f"{NAME}: starting on gpu-a",
        f"{NAME}: running on gpu-a",
        f"{NAME}: stopped on request, saved; another pod goes on",
        f"{NAME}: running on gpu-a (attempt 2)",
        f"{NAME}: complete (attempt 2)",
    ]


def test_what_a_run_fails_with_is_returned_after_its_last_line() -> None:
    end = terminated(3, last_word(3, "EnvironmentProblem", "the disk is full", "free some"))
    run = Run(
        pod(running()),
        lambda api: (pod(end, log=(line(1, "last line"),))(api), ends("Failed")(api))[0],
    )
    error = run.follow()
    assert isinstance(error, EnvironmentProblem)
    assert (error.what, error.fix) == ("the disk is full", "free some")
    assert run.out == ["last line"]


def test_reasons_that_alternate_are_said_once() -> None:
    pull, back_off = (
        waiting("ErrImagePull", "not found"),
        waiting("ImagePullBackOff", "ErrImagePull: not found"),
    )
    run = Run(pod(pull), pod(back_off), pod(pull), pod(running()), ends("Complete"))
    assert run.follow() is None
    assert len(run.said) == 3


def test_an_image_that_does_not_come_ends_the_waiting() -> None:
    run = Run(pod(waiting("ErrImagePull", "manifest unknown")))
    error = run.follow()
    assert isinstance(error, EnvironmentProblem)
    assert "manifest unknown" in error.what


def test_a_pod_that_waits_for_a_machine_is_waited_for() -> None:
    wait = [pod(waiting("ContainerCreating"))] * (PACE.patience * 5)
    assert Run(*wait, ends("Complete")).follow() is None


def test_a_job_that_somebody_deleted_is_an_interruption() -> None:
    run = Run(pod(running()), lambda api: api.remove("Job", NAME))
    assert isinstance(run.follow(), Interrupted)
    run = Run(pod(running()), lambda api: api.put(make_job(uid="another")))
    assert isinstance(run.follow(), Interrupted)


def lose(api: FakeApi) -> None:
    api.is_lost = True


def find(api: FakeApi) -> None:
    api.is_lost = False


def test_a_lost_connection_is_said_once_and_loses_no_line() -> None:
    lines = (line(1, "step 1"), line(2, "step 2"))
    run = Run(
        pod(running(), log=lines[:1]), lose, pod(running(), log=lines), find, ends("Complete")
    )
    assert run.follow() is None
    assert run.out == ["step 1", "step 2"]
    assert [("cannot be reached" in said, "is back" in said) for said in run.said] == [
        (False, False),
        (True, False),
        (False, True),
    ]


def test_one_lost_request_is_not_worth_a_word() -> None:
    run = Run(pod(running()), lose, find, ends("Complete"))
    assert run.follow() is None
    assert run.said == [f"{NAME}: running on gpu-a"]


def test_a_connection_that_stays_lost_ends_the_following() -> None:
    run = Run(pod(running()), lose)
    with pytest.raises(Unreachable, match="cannot be reached"):
        run.follow()
    assert sum("trying again" in said for said in run.said) == 1


def test_the_log_of_a_machine_that_does_not_answer_stops_nothing() -> None:
    run = Run(pod(running()), pod(running()), ends("Complete"))
    run.api.refused["log", "Pod"] = refusal(500, "InternalError", "dial tcp: timeout", "Pod")
    assert run.follow() is None
    assert run.said[-1].endswith("could not be read: dial tcp: timeout")
    run = Run(pod(running()))
    run.api.refused["log", "Pod"] = refusal(403, "Forbidden", "you may not", "Pod")
    with pytest.raises(EnvironmentProblem):
        run.follow()


def test_a_log_that_stays_away_does_not_hide_how_the_run_ended() -> None:
    end = terminated(4, last_word(4, "TrainingFailed", "the loss is no number"))
    run = Run(lambda api: (pod(end)(api), ends("Failed")(api))[0])
    run.api.refused["log", "Pod"] = Unreachable("it answers 504")  # type: ignore[assignment]
    error = run.follow()
    assert error is not None
    assert error.what == "the loss is no number"
    assert run.said == ["the end of the log could not be read: it answers 504"]


def test_only_the_newest_pods_log_unless_all_are_asked_for() -> None:
    api = FakeApi(make_job())
    pod(terminated(75), log=(line(1, "old"),))(api)
    pod(running(), attempt=2, log=(line(2, "new"),))(api)
    state = read_state(api, "Job", NAME)
    assert state is not None
    out: list[str] = []
    every = NodeLog(api, write=out.append)
    every.read(state)
    assert out == ["old", "new"]
    out.clear()
    newest = NodeLog(api, write=out.append)
    newest.skip_earlier(state)
    newest.read(state)
    assert out == ["new"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("stopped by SIGTERM")])
def test_who_stops_following_is_told_how_to_come_back(stop: BaseException) -> None:
    said: list[str] = []
    connection = Connection(None, "team", "blue")
    with pytest.raises(type(stop)), coming_back(NAME, connection, said.append):
        raise stop
    (text,) = said
    assert f"rankzero logs {NAME} --namespace team --context blue --follow" in text
    assert f"rankzero cancel {NAME} --namespace team --context blue" in text


def piece(*lines: str) -> str:
    return "".join(f"{each}\n" for each in lines)


def test_lines_of_the_same_moment_are_all_kept() -> None:
    lines = LogLines()
    same = line(5, "again")
    assert lines.take(piece(same, same), is_complete=False) == ["again", "again"]
    assert lines.since == "2026-01-01T10:00:04Z"
    assert lines.take(piece(same, same, same), is_complete=False) == ["again"]
    assert lines.take(piece(same, same, same), is_complete=False) == []


def test_a_line_that_was_stamped_before_the_last_one_is_not_lost() -> None:
    lines = LogLines()
    lines.take(piece(line(4, "a"), line(6, "c")), is_complete=False)
    assert lines.take(piece(line(6, "c"), line(5, "b")), is_complete=False) == ["b"]


def test_a_line_is_shown_when_it_is_whole() -> None:
    lines = LogLines()
    assert lines.take(line(1, "st"), is_complete=False) == []
    assert lines.take(line(1, "step 1"), is_complete=True) == ["step 1"]


def test_empty_lines_and_lines_with_spaces_stay_as_they_are() -> None:
    text = piece(line(1, ""), line(2, "  indented  "))
    assert LogLines().take(text, is_complete=False) == ["", "  indented  "]
    assert LogLines().take("", is_complete=True) == []
