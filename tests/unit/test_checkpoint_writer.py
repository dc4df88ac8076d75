"""The background writer: one job at a time, no error lost, no interruption that breaks it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

import pytest

from trainer.checkpoints.writer import BackgroundWriter
from trainer.errors import EnvironmentProblem, Interrupted

_PATIENCE_SECONDS = 60.0


def _fail_with(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_a_job_runs_beside_the_caller_and_the_next_waits_for_it() -> None:
    writer, go, order = BackgroundWriter(), threading.Event(), list[str]()

    def first() -> None:
        assert go.wait(_PATIENCE_SECONDS)
        order.append("first")

    writer.submit(first)
    writer.check()  # in flight: nothing to say, and no waiting
    assert order == []
    go.set()
    writer.submit(lambda: order.append(threading.current_thread().name))
    assert order[0] == "first"
    writer.wait()
    assert order == ["first", "checkpoint"]
    writer.wait()
    writer.check()


def test_jobs_never_overlap() -> None:
    writer, running, most = BackgroundWriter(), 0, 0

    def job() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        running -= 1

    for _ in range(200):
        writer.submit(job)
    writer.wait()
    assert most == 1


@pytest.mark.parametrize(
    "error",
    [EnvironmentProblem("no space"), OSError(5, "bad disk"), KeyboardInterrupt(), SystemExit(3)],
)
def test_an_error_comes_out_once_as_it_was_and_the_writer_goes_on(error: BaseException) -> None:
    writer, done = BackgroundWriter(), list[int]()
    methods: list[Callable[[], None]] = [writer.wait, lambda: writer.submit(lambda: done.append(0))]
    for method in methods:
        writer.submit(_fail_with(error))
        with pytest.raises(type(error)) as caught:
            method()
        assert caught.value is error
        writer.check()
        writer.wait()
        assert done == []  # the job refused was not started
    writer.submit(lambda: done.append(1))
    writer.wait()
    assert done == [1]


def test_check_raises_the_error_of_a_job_that_has_ended() -> None:
    writer = BackgroundWriter()
    writer.submit(_fail_with(OSError(5, "bad disk")))
    with pytest.raises(OSError, match="bad disk"):
        for _ in range(10**9):
            writer.check()
    writer.check()


def test_an_interruption_while_waiting_leaves_the_job_to_be_awaited_again() -> None:
    writer, go, done = BackgroundWriter(), threading.Event(), list[str]()

    def interrupt(number: int, _: FrameType | None) -> None:
        raise Interrupted(f"signal {number}")

    def job() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        assert go.wait(_PATIENCE_SECONDS)
        done.append("written")

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Interrupted):
            writer.submit(job)
            writer.wait()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert done == []
    go.set()
    writer.wait()
    assert done == ["written"]


@pytest.mark.parametrize("has_begun", [True, False])
def test_an_interruption_while_starting_neither_loses_nor_doubles_a_job(
    monkeypatch: pytest.MonkeyPatch, has_begun: bool
) -> None:
    writer, ran, begun, go = BackgroundWriter(), list[str](), threading.Event(), threading.Event()
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if has_begun:
            start(thread)
            assert begun.wait(_PATIENCE_SECONDS)
        raise KeyboardInterrupt

    def job() -> None:
        begun.set()
        assert go.wait(_PATIENCE_SECONDS)
        ran.append("once")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.submit(job)
    go.set()
    writer.wait()
    assert ran == (["once"] if has_begun else [])
    writer.submit(lambda: ran.append("next"))
    writer.wait()
    assert ran[-1] == "next"
