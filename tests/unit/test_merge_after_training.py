"""The merge after training is asked to stop, not killed, and its end is told as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

RANK = """
import sys
from pathlib import Path
from trainer import interruption
from trainer.entry import run_entry
from trainer.merge_after_training import merge_after_training
from trainer.run_directory import RunDirectory
interruption._SAME_REQUEST_SECONDS = 0.0
sys.executable = sys.argv[1]
sys.exit(run_entry(lambda _: merge_after_training(RunDirectory(Path(sys.argv[2])))))
"""
# Stands for python; asked to stop, it ends as its name says.
MERGE = """#!{python}
import json, os, pathlib, signal, sys
run = pathlib.Path(sys.argv[3])
def stop(*_):
    (run / "asked").touch()
    if not (run / "stays").exists():
        sys.exit(75)
signal.signal(signal.SIGTERM, stop)
(run / "new").write_text(json.dumps([os.getpid(), sys.argv[1:]]))
(run / "new").rename(run / "begun")
if (run / "code").exists():
    code = int((run / "code").read_text())
    os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
while True:
    signal.pause()
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    fake = tmp_path / "python"
    fake.write_text(MERGE.format(python=sys.executable))
    fake.chmod(0o755)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


Start = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def start(run: Path) -> Iterator[Start]:
    """Start a rank; what a failed test leaves of it is ended."""
    ranks: list[subprocess.Popen[str]] = []
    command = [sys.executable, "-c", RANK, str(run.parent / "python"), str(run)]

    def begin() -> subprocess.Popen[str]:
        ranks.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return ranks[-1]

    yield begin
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
            rank.wait()
    if is_at_work(run):
        os.kill(merge_pid(run), signal.SIGKILL)


def merge_pid(run: Path) -> int:
    pid: int = json.loads((run / "begun").read_text())[0]
    return pid


def is_at_work(run: Path) -> bool:
    """Whether the merge still runs."""
    if not (run / "begun").exists():
        return False
    try:
        return str(run) in psutil.Process(merge_pid(run)).cmdline()
    except psutil.Error:
        return False


def until(rank: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    while not condition():
        try:
            code = rank.wait(timeout=0.01)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"ended with {code}")


def ended(rank: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = rank.communicate(timeout=60)
    return rank.returncode, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_to_stop_is_passed_on_to_the_merge(
    number: signal.Signals, run: Path, start: Start
) -> None:
    rank = start()
    until(rank, (run / "begun").exists)
    rank.send_signal(number)
    code, errors = ended(rank)
    assert code == 75, errors
    assert (run / "asked").exists()
    assert f"error: stopped by {number.name} while merging" in errors
    assert "Traceback" not in errors
    assert not is_at_work(run)
    assert json.loads((run / "begun").read_text())[1] == [
        "-m",
        "trainer.merge",
        str(run),
        "--replace",
    ]


def test_a_second_request_ends_it_at_once(run: Path, start: Start) -> None:
    (run / "stays").touch()
    rank = start()
    until(rank, (run / "begun").exists)
    rank.send_signal(signal.SIGTERM)
    until(rank, (run / "asked").exists)
    rank.send_signal(signal.SIGTERM)
    code, errors = ended(rank)
    assert code == 75, errors
    assert "stopped at once by a second SIGTERM" in errors
    assert not is_at_work(run)


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        (0, 0, ""),
        (3, 3, "error: the merge after training failed"),
        (75, 75, "error: stopped while merging"),
        (-signal.SIGKILL, 4, "error: the merge after training was killed by signal 9"),
    ],
)
def test_the_end_of_the_merge_is_the_end_of_the_run(
    end: int, code: int, said: str, run: Path, start: Start
) -> None:
    (run / "code").write_text(str(int(end)))
    found, errors = ended(start())
    assert found == code, errors
    assert errors.startswith(said)
    assert bool(errors) == bool(said)


def test_a_gate_that_refuses_starts_no_merge(run: Path, start: Start) -> None:
    require = {"merge": {"require": {"eval_loss": "< 1"}}}
    (run / "resolved.json").write_text(json.dumps(require))
    code, errors = ended(start())
    assert code == 5, errors
    assert "eval_loss was not measured, required < 1: NOT met" in errors
    assert not (run / "begun").exists()
