"""The supervisor with small commands: what it passes on, what it leaves behind."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
DRIVER = """
import sys
from pathlib import Path
import click
from launcher.attempt import Attempt
from launcher.supervise import supervise
from trainer.errors import RankZeroError
folder, *command = sys.argv[1:]
attempt = Attempt.create(Path(folder)) if folder else None
try:
    sys.exit(supervise(command, attempt=attempt, environment={"GIVEN": "yes"}))
except RankZeroError as error:
    click.echo(f"error: {error}", err=True)
    sys.exit(error.exit_code)
"""
# A rank without torch: it joins the attempt as the trainer does, then runs `body`.
RANK = """
import os, signal, subprocess, sys
from trainer.attempt import taking_part
from trainer.entry import run_entry
from trainer.errors import ConfigError, TrainingFailed
from trainer.world import read_world
def main(argv):
    with taking_part(read_world):
        {body}
sys.exit(run_entry(main))
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


def test_a_progress_bar_is_drawn_on_a_terminal_and_not_logged(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 77, 0, 0))
    ours_says = {name: value for name, value in os.environ.items() if name not in _SIZE}
    started = subprocess.Popen(
        command_line(tmp_path, RANK.format(body=BAR.strip())),
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
    assert started.wait() == 0, shown
    assert "━".encode() in shown
    log = (tmp_path / "attempts" / "001" / "rank-0.log").read_text()
    lines = log.splitlines()
    assert [line for line in lines if "━" not in line] == ["step 0", "step 1", "step 2"]
    assert len(lines) <= 4  # the finished bar, at most
