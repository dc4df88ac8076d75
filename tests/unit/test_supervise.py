"""The supervisor with small commands: what it passes on, what it leaves behind."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
DRIVER = """
import os, sys
from pathlib import Path
import click
from launcher import supervise as module
from launcher.attempt import Attempt
from launcher.supervise import supervise
from trainer.errors import RankZeroError
if "QUICK" in os.environ:  # every signal counts, and there is little time after the second
    module._SAME_REQUEST_SECONDS, module.KILL_GRACE_SECONDS = 0.0, 0.5
folder, *command = sys.argv[1:]
how = {"environment": {"GIVEN": "yes"}, "how_to_go_on": "run it again"}
attempt = Attempt.create(Path(folder)) if folder else None
try:
    sys.exit(supervise(command, attempt=attempt, **how))
except RankZeroError as error:
    click.echo(f"error: {error}", err=True)
    sys.exit(error.exit_code)
"""
# A rank without torch: it joins the attempt as the trainer does, then runs `body`.
RANK = """
import os, signal, subprocess, sys
from pathlib import Path
from trainer.attempt import taking_part
from trainer.entry import run_entry
from trainer.errors import ConfigError, Interrupted, TrainingFailed
from trainer.world import read_world
def main(argv):
    with taking_part(read_world):
        {body}
sys.exit(run_entry(main))
"""
# As torchrun: starts two ranks, and asks the other to stop when one ends with a code.
ENGINE = """
import os, subprocess, sys
world = {{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}}
ranks = [
    subprocess.Popen(
        [sys.executable, "-c", {rank!r}],
        env={{**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)}},
    )
    for rank in range(2)
]
codes = set()
while len(codes) < 2:
    pid, status = os.wait()
    codes.add((pid, os.waitstatus_to_exitcode(status)))
    for rank in ranks:
        if rank.pid not in dict(codes):
            rank.terminate()
sys.exit(int(any(code for _, code in codes)))
"""


def command_line(folder: Path | None, *command: str) -> list[str]:
    return [sys.executable, "-c", DRIVER, str(folder or ""), sys.executable, "-c", *command]


def supervised(folder: Path | None, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command_line(folder, *command),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_plain_command_keeps_its_exit_code_and_environment() -> None:
    ended = supervised(None, "import os, sys; print(os.environ['GIVEN']); sys.exit(3)")
    assert (ended.returncode, ended.stdout) == (3, "yes\n")


def test_a_plain_command_that_dies_is_a_failure() -> None:
    ended = supervised(None, "import os; os.kill(os.getpid(), 9)")
    assert ended.returncode == 4
    assert "was killed by SIGKILL" in ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="orphans come to the launcher on Linux")
def test_no_process_is_left_behind(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    sleeper = f"import os, signal; open({str(pid_file)!r}, 'w').write(str(os.getpid()))"
    body = (
        "import os, signal, subprocess, sys;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"child = subprocess.Popen([sys.executable, '-c', {sleeper + '; signal.pause()'!r}],"
        " start_new_session=True);\n"
        f"while not os.path.exists({str(pid_file)!r}) or not open({str(pid_file)!r}).read(): pass"
    )
    assert supervised(None, body).returncode == 0
    assert not psutil.pid_exists(int(pid_file.read_text()))


def test_stdout_and_stderr_stay_apart_and_are_both_logged(tmp_path: Path) -> None:
    body = "print('result'); print('\\x1b[1mnews\\x1b[0m', file=sys.stderr)"
    ended = supervised(tmp_path, RANK.format(body=body))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "result\n", "\x1b[1mnews\x1b[0m\n")
    log = (tmp_path / "attempts" / "001" / "rank-0.log").read_text()
    assert sorted(log.splitlines()) == ["news", "result"]


def test_an_error_is_said_once_with_its_exit_code(tmp_path: Path) -> None:
    body = "raise ConfigError('the rate is -1', rule='above 0', fix='say 1e-4')"
    ended = supervised(tmp_path, RANK.format(body=body))
    assert ended.returncode == 2
    assert ended.stderr == "error: the rate is -1\n  rule: above 0\n  fix:  say 1e-4\n"
    assert "the rate is -1" in (tmp_path / "attempts" / "001" / "rank-0.log").read_text()


def test_a_bug_keeps_its_traceback_and_exit_code(tmp_path: Path) -> None:
    ended = supervised(tmp_path, RANK.format(body="{}['x']"))
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "error: KeyError: 'x'" in ended.stderr


def test_each_attempt_has_its_own_folder(tmp_path: Path) -> None:
    for _ in range(2):
        assert supervised(tmp_path, RANK.format(body="pass")).returncode == 0
    assert sorted(path.name for path in (tmp_path / "attempts").iterdir()) == ["001", "002"]


def test_under_nohup_a_closed_terminal_is_no_request(tmp_path: Path) -> None:
    code = RANK.format(body="os.kill(os.getppid(), signal.SIGHUP)")
    started = subprocess.run(
        ["nohup", *command_line(tmp_path, code)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert started.returncode == 0, started.stderr


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the supervisor; what a failed test leaves is ended, and with it what is below."""
    processes = []

    def start(folder: Path, code: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command_line(folder, code),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# Says what it hears, stops when `go` is there, and tells where it is to be found.
SAVES = """
        heard = []
        def hear(number, _):
            heard.append(number)
            print('heard', flush=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, hear)
        print('ready', flush=True)
        go = Path({folder!r}) / 'go'
        while not heard or not go.exists(): signal.sigtimedwait([], 0.05)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        if len(heard) > 1 or signal.sigtimedwait([signal.SIGTERM], 1.0):
            raise TrainingFailed('asked twice')
        raise Interrupted('stopped after step 41; step-000041 saved')
"""


def saves(folder: Path) -> str:
    return RANK.format(body=SAVES.format(folder=str(folder)).strip())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_was_saved_ends_with_75_and_says_how_to_go_on(
    number: signal.Signals, tmp_path: Path, start: Start
) -> None:
    process = start(tmp_path, saves(tmp_path))
    assert next_line(process) == "ready"
    process.send_signal(number)
    assert next_line(process) == "heard"
    (tmp_path / "go").touch()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert errors == "error: stopped after step 41; step-000041 saved\n  fix:  run it again\n"


def test_ctrl_c_before_there_is_something_to_save_keeps_its_code(
    tmp_path: Path, start: Start
) -> None:
    body = "print('ready', flush=True)\n        while True: signal.pause()"
    process = start(tmp_path, RANK.format(body=body))
    assert next_line(process) == "ready"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == "error: stopped by SIGINT\n  fix:  run it again\n"


# The ranks agree by a file that whoever was asked makes.
AGREES = """
        asked = Path({folder!r}) / 'asked'
        signal.signal(signal.SIGTERM, lambda *_: asked.touch())
        Path({folder!r}, f'ready-{{read_world().rank}}').touch()
        while not asked.exists(): signal.sigtimedwait([], 0.05)
        if read_world().rank: raise Interrupted('stopped, while working with another rank')
        raise Interrupted('stopped by SIGTERM after step 41')
"""


def test_one_rank_that_is_asked_stops_them_all(tmp_path: Path, start: Start) -> None:
    rank = RANK.format(body=AGREES.format(folder=str(tmp_path)).strip())
    process = start(tmp_path, ENGINE.format(rank=rank))
    while not all((tmp_path / f"ready-{number}").exists() for number in range(2)):
        assert process.poll() is None
    record = json.loads((tmp_path / "attempts" / "001" / "rank-1.json").read_text())
    os.kill(record["pid"], signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert errors == "error: stopped by SIGTERM after step 41\n  fix:  run it again\n"
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["rank"]) == ("interrupted", 75, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="orphans come to the launcher on Linux")
def test_a_rank_that_saves_is_asked_once_though_its_engine_dies(
    tmp_path: Path, start: Start
) -> None:
    engine = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {saves(tmp_path)!r}])"
    process = start(tmp_path, engine)
    assert next_line(process) == "ready"
    process.terminate()
    assert next_line(process) == "heard"
    (child,) = psutil.Process(process.pid).children()
    child.kill()
    while child.is_running():
        assert process.poll() is None
    (tmp_path / "go").touch()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "step-000041 saved" in errors


def test_after_the_second_request_a_rank_that_hears_nothing_is_killed(
    tmp_path: Path, start: Start
) -> None:
    process = start(tmp_path, saves(tmp_path), QUICK="yes")
    assert next_line(process) == "ready"
    for _ in range(2):
        process.terminate()
        assert next_line(process) == "heard"
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "stopped by SIGTERM" in errors


@pytest.mark.parametrize(
    ("before", "error", "is_kept"),
    [
        ("completed", "ConfigError", True),
        ("interrupted", "ConfigError", True),
        ("completed", "TrainingFailed", True),
        ("interrupted", "TrainingFailed", False),
        ("preparing", "ConfigError", False),
        (None, "ConfigError", False),
    ],
)
def test_an_attempt_that_never_trained_leaves_what_the_status_said(
    before: str | None, error: str, is_kept: bool, tmp_path: Path
) -> None:
    if before is not None:
        (tmp_path / "status.json").write_text(json.dumps({"state": before, "ended": 1.0}))
    assert supervised(tmp_path, RANK.format(body=f"raise {error}('now')")).returncode in (2, 4)
    status = json.loads((tmp_path / "status.json").read_text())
    if is_kept:
        assert status == {"state": before, "ended": 1.0}
    else:
        assert (status["state"], status["message"]) == ("failed", "now")


def test_the_status_of_a_run_that_another_launcher_carries_out_is_left_alone(
    tmp_path: Path,
) -> None:
    body = "raise ConfigError('the run is in progress')"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        process = psutil.Process(other.pid)
        who = {"pid": other.pid, "host": socket.gethostname(), "created": process.create_time()}
        status = json.dumps({"state": "running", **who})
        (tmp_path / "status.json").write_text(status)
        assert supervised(tmp_path, RANK.format(body=body)).returncode == 2
        assert (tmp_path / "status.json").read_text() == status
        other.kill()


def test_the_third_request_ends_everything_at_once(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    body = (
        "signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True)); "
        f"open({str(ready)!r}, 'w').close()\n"
        "        while True: signal.pause()"
    )
    started = subprocess.Popen(
        command_line(tmp_path, RANK.format(body=body)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    while not ready.exists():
        assert started.poll() is None
    for _ in range(2):
        # Signals close to each other are one request, so ask until this one has been heard.
        heard = False
        while not heard:
            started.terminate()
            heard = bool(select_line(started, seconds=0.3))
    while started.poll() is None:
        started.terminate()
        try_wait(started, seconds=0.3)
    _, errors = started.communicate()
    assert started.returncode == 75, errors
    assert "stopped by SIGTERM" in errors


def select_line(process: subprocess.Popen[str], *, seconds: float) -> str:
    """Return the next line of stdout, or nothing when none comes in time."""
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    assert process.stdout is not None
    return process.stdout.readline() if ready else ""


def try_wait(process: subprocess.Popen[str], *, seconds: float) -> None:
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return


_SIZE = ("COLUMNS", "LINES")  # pytest's own terminal, or a build server's
BAR = """
        from rich.console import Console
        from rich.progress import track
        console = Console(stderr=True)
        assert console.is_terminal, 'no terminal'
        assert console.width == 77, console.width
        for step in track(range(3), 'training', console=console):
            console.print('step', step)
"""


def on_a_terminal(folder: Path, body: str) -> tuple[int, str]:
    """Supervise a rank on a terminal of 77 columns; return the exit code and what is shown."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 77, 0, 0))
    ours_says = {name: value for name, value in os.environ.items() if name not in _SIZE}
    started = subprocess.Popen(
        command_line(folder, RANK.format(body=body.strip())),
        cwd=ROOT,
        stderr=theirs,
        env={**ours_says, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    return started.wait(), shown.decode()


def test_a_progress_bar_is_drawn_on_a_terminal_and_not_logged(tmp_path: Path) -> None:
    code, shown = on_a_terminal(tmp_path, BAR)
    assert code == 0, shown
    assert "━" in shown
    log = (tmp_path / "attempts" / "001" / "rank-0.log").read_text()
    lines = log.splitlines()
    assert [line for line in lines if "━" not in line] == ["step 0", "step 1", "step 2"]
    assert len(lines) <= 4  # the finished bar, at most


STOPPED = """
        import time
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
"""


def test_a_first_request_is_answered_at_once_on_a_terminal(tmp_path: Path) -> None:
    code, shown = on_a_terminal(tmp_path, STOPPED)
    assert code in (75, 130), shown
    assert "stopping once what was learned is saved; again stops at once" in shown
