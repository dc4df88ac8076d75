"""What a run directory allows: begin, go on, wait, or leave it alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import psutil
import pytest

from launcher import run_directory
from launcher.plan_request import Past
from launcher.run_directory import (
    CreatedRun,
    create_attempt,
    enter,
    goes_on,
    is_complete,
    read_past,
    resume_choice,
)
from launcher.run_plan import RunPlan
from trainer.errors import ConfigError, EnvironmentProblem
from trainer.run_directory import RunDirectory, find_process, write_json
from trainer.status import write_completed, write_running

ROOT = Path(__file__).parents[2]
HOST = socket.gethostname()


@pytest.fixture
def other() -> Iterator[psutil.Process]:
    """A process that is neither this one nor above it."""
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as started:
        yield psutil.Process(started.pid)
        started.kill()


def at_work(process: psutil.Process, **changes: Any) -> dict[str, Any]:
    own = {"pid": process.pid, "host": HOST, "created": process.create_time()}
    return {"state": "running", **own, **changes}


def gone() -> dict[str, Any]:
    """The status of a run whose process was killed: the pid is another process's now."""
    return at_work(psutil.Process(), created=psutil.Process().create_time() - 1000)


def make_run(path: Path, status: dict[str, Any] | None, *files: str) -> RunDirectory:
    run = RunDirectory(path)
    path.mkdir(exist_ok=True)
    for name in files:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    if status is not None:
        write_json(run.status, status)
    return run


def outcome(run: RunDirectory, resume: str, marker: Path) -> str:
    try:
        run.refuse(resume, marker=marker)
    except ConfigError as error:
        assert error.rule
        assert error.fix
        return "in progress" if "in progress" in error.what else "refused"
    return "ok"


FAILED = {"state": "failed", "exit_code": 4}
STOPPED = {"state": "interrupted", "exit_code": 75}
DONE = {"state": "completed", "exit_code": 0}
ELSEWHERE = {"state": "running", "pid": 1, "host": "another", "created": 1.0}


@pytest.mark.parametrize(
    ("files", "status", "auto", "never"),
    [
        ((), None, "ok", "ok"),
        (("notes.txt",), None, "ok", "ok"),
        (("adapter/a",), None, "refused", "refused"),
        (("best_model/a",), None, "refused", "refused"),
        (("metrics.jsonl",), None, "refused", "refused"),
        (("checkpoints/step-000010/a",), None, "ok", "refused"),
        (("resolved.json",), None, "ok", "refused"),
        (("resolved.json",), FAILED, "ok", "ok"),
        (("resolved.json",), STOPPED, "ok", "ok"),
        (("resolved.json",), DONE, "ok", "refused"),
        (("resolved.json",), ELSEWHERE, "ok", "refused"),
        (("resolved.json",), "gone", "ok", "ok"),
        (("resolved.json", "metrics.jsonl"), FAILED, "ok", "refused"),
        (("resolved.json", "metrics.jsonl"), "gone", "ok", "refused"),
        (("resolved.json", "checkpoints/step-000003/a"), STOPPED, "ok", "refused"),
        (("resolved.json", "adapter/a"), DONE, "ok", "refused"),
        (("resolved.json",), "preparing", "in progress", "in progress"),
        (("resolved.json", "metrics.jsonl"), "running", "in progress", "in progress"),
    ],
)
def test_what_a_directory_allows(
    files: tuple[str, ...],
    status: Any,
    auto: str,
    never: str,
    tmp_path: Path,
    other: psutil.Process,
) -> None:
    if status == "gone":
        status = gone()
    elif status in ("preparing", "running"):
        status = at_work(other, state=status)
    run = make_run(tmp_path, status, *files)
    before = sorted(tmp_path.rglob("*"))
    assert outcome(run, "auto", run.resolved_config) == auto
    assert outcome(run, "/a/checkpoint", run.resolved_config) == auto
    assert outcome(run, "never", run.resolved_config) == never
    assert sorted(tmp_path.rglob("*")) == before


def test_a_process_is_known_by_when_it_was_created() -> None:
    me = psutil.Process()
    assert find_process(me.pid, me.create_time()) == me
    assert find_process(me.pid, me.create_time() - 60) is None
    for pid, created in ((me.pid, None), (None, 1.0), (-1, 1.0), ("1", "1")):
        assert find_process(pid, created) is None


def test_a_process_that_ended_and_waits_to_be_reaped_is_not_at_work(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        run = make_run(tmp_path, at_work(psutil.Process(started.pid)))
        assert run.process_at_work() is not None
        started.kill()
        os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)
        assert run.process_at_work() is None


def test_a_rank_may_claim_what_its_launcher_prepares_and_nobody_else(
    tmp_path: Path, other: psutil.Process
) -> None:
    parent = psutil.Process().parent()
    assert parent is not None
    run = make_run(tmp_path, at_work(parent, state="preparing"), "resolved.json")
    for resume in ("auto", "never"):
        run.claim(resume=resume)
    make_run(tmp_path, at_work(other, state="preparing"))
    with pytest.raises(ConfigError, match="is in progress"):
        run.claim(resume="auto")


# -- waiting for the last attempt ------------------------------------------------------------------


def test_a_launcher_waits_for_ranks_that_end_by_themselves(
    tmp_path: Path, other: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, at_work(other), "resolved.json", "metrics.jsonl")
    told = []

    def tell(text: str, **_: object) -> None:
        told.append(text)
        write_json(run.status, STOPPED)

    monkeypatch.setattr(click, "echo", tell)
    enter(run, "auto", is_waiting=True)
    assert told == [f"waiting for rank 0 (pid {other.pid}) of the last attempt to end"]


@pytest.mark.parametrize(("resume", "is_waiting"), [("auto", False), ("never", True)])
def test_nobody_waits_for_a_run_that_would_be_refused_or_not_started(
    resume: str, is_waiting: bool, tmp_path: Path, other: psutil.Process
) -> None:
    run = make_run(tmp_path, at_work(other), "resolved.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(click, "echo", lambda *_, **__: pytest.fail("waits"))
        with pytest.raises(ConfigError, match="is in progress"):
            enter(run, resume, is_waiting=is_waiting)


def test_a_run_that_does_not_end_is_in_progress(
    tmp_path: Path,
    other: psutil.Process,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run_directory, "WAIT_SECONDS", 0.5)
    run = make_run(tmp_path, at_work(other, state="preparing"), "resolved.json")
    with pytest.raises(ConfigError, match="is in progress") as caught:
        enter(run, "auto", is_waiting=True)
    assert caught.value.exit_code == 2
    assert capsys.readouterr().err.count("waiting for the launcher") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_ends_the_wait(
    number: signal.Signals, code: int, tmp_path: Path, other: psutil.Process
) -> None:
    run = make_run(tmp_path / "run", at_work(other), "resolved.json")
    config = tmp_path / "run.json"
    config.write_text(
        json.dumps({"model": {"name": "m"}, "data": {"train": "rows"}, "output_dir": str(run.path)})
    )
    with subprocess.Popen(
        [sys.executable, "-m", "launcher", "train", str(config)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        assert waiting.stderr is not None
        assert "waiting for rank 0" in waiting.stderr.readline()
        waiting.send_signal(number)
        rest = waiting.stderr.read()
    assert waiting.returncode == code
    assert "Traceback" not in rest


# -- beginning and going on ------------------------------------------------------------------------


def test_of_launchers_that_start_together_one_gets_the_directory(tmp_path: Path) -> None:
    given = tmp_path / "run.yaml"
    given.write_text("{}")
    together = threading.Barrier(4)

    def begin(number: int, name: str) -> str:
        together.wait()
        try:
            CreatedRun.create(tmp_path / f"run-{number}", given, name * 1000, resume="auto")
        except ConfigError as error:
            return error.what
        return name

    with ThreadPoolExecutor(4) as pool:
        for number in range(20):
            said = list(pool.map(partial(begin, number), "abcd"))
            won = [name for name in said if name in "abcd"]
            assert len(won) == 1
            assert sum("is in progress" in what for what in said) == 3
            assert (tmp_path / f"run-{number}" / "resolved.json").read_text() == won[0] * 1000


def test_a_run_that_trained_nothing_is_begun_anew_and_given_back(tmp_path: Path) -> None:
    given = tmp_path / "run.yaml"
    given.write_text("{}")
    run = make_run(tmp_path / "run", FAILED, "resolved.json", "mine.txt")
    created = CreatedRun.create(run.path, given, "{}", resume="never")
    assert run.read_status()["state"] == "preparing"
    with pytest.raises(ConfigError):
        CreatedRun.create(run.path, given, "{}", resume="never")
    created.give_back()
    assert [path.name for path in run.path.iterdir()] == ["mine.txt"]


def test_going_on_replaces_nothing_of_the_run(tmp_path: Path, plan: Any) -> None:
    given = tmp_path / "run.yaml"
    given.write_text("{}")
    names = ("resolved.json", "given_config.yaml", "plan.json", "data_report.json")
    run = make_run(tmp_path / "run", STOPPED, *names, "metrics.jsonl")
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    assert goes_on(run, "auto")
    assert goes_on(run, "/a/checkpoint")
    assert not goes_on(run, "never")
    attempt = create_attempt(run, given, '{"new": 1}', plan)
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in attempt.folder.iterdir()) == [
        "given_config.yaml",
        "plan.json",
        "resolved.json",
    ]
    assert (attempt.folder / "resolved.json").read_text() == '{"new": 1}'


@pytest.fixture
def plan() -> RunPlan:
    return RunPlan(
        profile="cpu",
        device="cpu",
        nodes=1,
        processes_per_node=1,
        engine="python",
        strategy="one process",
        deepspeed_config=None,
        precision="fp32",
        tensors_gib=1.0,
        overrides={},
        decisions=(),
        rejected=(),
        usage=(),
        terms=(),
        notes=(),
    )


def test_only_the_very_same_completed_run_is_complete(tmp_path: Path) -> None:
    run = make_run(tmp_path, None, "metrics.jsonl")
    write_json(run.resolved_config, {"seed": 1, "name": "ä"})
    same, other = '{"name": "ä",\n"seed": 1}', '{"name": "ä", "seed": 2}'
    assert not is_complete(run, same)
    write_running(run)
    assert not is_complete(run, same)
    write_completed(run)
    assert is_complete(run, same)
    assert not is_complete(run, other)
    run.resolved_config.write_text("{")
    assert not is_complete(run, same)


def test_what_a_run_has_fixed_and_shown_is_read(tmp_path: Path) -> None:
    ours, theirs = RunDirectory(tmp_path / "ours"), RunDirectory(tmp_path / "theirs")
    checkpoint = theirs.checkpoints / "step-000010"
    assert read_past(ours, "auto") == Past()
    checkpoint.mkdir(parents=True)
    ours.path.mkdir()
    write_json(ours.path / "contract.json", {"global_batch_size": 12})
    write_json(ours.last_save, {"seconds": 3.5, "bytes": 1, "blocked_seconds": 0.1})
    write_json(checkpoint / "contract.json", {"global_batch_size": 20})
    write_json(theirs.last_save, {"seconds": 70, "bytes": 1, "blocked_seconds": 0.1})
    assert read_past(ours, "auto") == Past(12, 3.5)
    assert read_past(ours, "never") == Past()
    assert read_past(ours, str(checkpoint)) == Past(20, 70.0)
    ours.last_save.write_text("{")
    assert read_past(ours, "auto") == Past(12, None)


def test_what_to_go_on_from_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert [resume_choice(given) for given in ("auto", "never")] == ["auto", "never"]
    assert resume_choice("run") == str(tmp_path / "run")
    with pytest.raises(ConfigError, match="--resume rum: no such folder"):
        resume_choice("rum")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_that_cannot_be_written_is_the_machines_trouble(tmp_path: Path, plan: Any) -> None:
    given = tmp_path / "run.yaml"
    given.write_text("{}")
    run = make_run(tmp_path / "run", STOPPED, "resolved.json")
    run.path.chmod(0o500)
    try:
        with pytest.raises(EnvironmentProblem):
            create_attempt(run, given, "{}", plan)
    finally:
        run.path.chmod(0o700)
