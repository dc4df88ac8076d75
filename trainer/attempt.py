"""One rank's part of an attempt: the record it leaves, its log, its tie to the launcher.

An attempt is a folder that the launcher made and names in RANKZERO_ATTEMPT. Each rank keeps
`rank-K.json` there. One that dies without a word leaves it saying "running", which is how the
launcher knows. Started by hand, without the variable, none of this happens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

from trainer.errors import INTERRUPTED_BY_KEYBOARD, Interrupted, RankZeroError
from trainer.run_directory import write_last_word
from trainer.world import World

VARIABLE = "RANKZERO_ATTEMPT"
LIFELINE_SECONDS = 30.0
"""Time to save once the launcher is dead: what torchrun, too, leaves its workers by default."""


@dataclass(frozen=True)
class RankRecord:
    """What `rank-K.json` says. Times are seconds since 1970."""

    rank: int
    world_size: int
    local_world_size: int
    """How many ranks this machine has, as far as the engine says."""
    pid: int
    host: str
    created: float
    """When the process was created: with the pid, which process it is."""
    state: str = "running"
    """running, completed, failed or interrupted."""
    exit_code: int | None = None
    error: str = ""
    message: str = ""
    rule: str = ""
    remedy: str = ""
    ended: float | None = None


def record_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.json"


def log_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.log"


def read_record(path: Path) -> RankRecord | None:
    """Return a rank's record; None when the file is not one."""
    try:
        return RankRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def attempt_folder() -> Path | None:
    """Return the folder of the attempt this process is part of, if a launcher made one."""
    given = os.environ.get(VARIABLE)
    return Path(given) if given else None


@contextmanager
def taking_part(read_world: Callable[[], World]) -> Iterator[None]:
    """Keep this rank's record while the block runs; nothing without an attempt.

    An error of rank 0 is not printed here: the launcher shows the cause, once, whichever rank it
    was. Other ranks leave theirs in their own log. One that was stopped ends with 0: the launcher
    reads the record, and an engine would report a failure at length and end the other ranks.
    """
    folder = attempt_folder()
    if folder is None:
        yield
        return
    world = read_world()
    record = _join(folder, world)
    try:
        yield
    except BaseException as error:
        ended = ended_with(record, error)
        is_told = _write(folder, ended)
        if is_told and ended.state == "interrupted":
            if not world.is_rank_zero:
                click.echo(ended.message, err=True)
            raise SystemExit(0) from error
        if world.is_rank_zero and isinstance(error, (RankZeroError, KeyboardInterrupt)):
            raise SystemExit(ended.exit_code) from error
        raise
    _write(folder, dataclasses.replace(record, state="completed", exit_code=0, ended=time.time()))


def ended_with(record: RankRecord, error: BaseException) -> RankRecord:
    """Return the record of a rank that this error ends."""
    end = dataclasses.replace(record, error=type(error).__name__, ended=time.time())
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        state = "failed" if code else "completed"
        return dataclasses.replace(end, state=state, exit_code=code, message=f"exit {code}")
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return dataclasses.replace(
            end,
            state="interrupted",
            exit_code=INTERRUPTED_BY_KEYBOARD,
            message="stopped by SIGINT",
        )
    if isinstance(error, click.ClickException):
        message = error.format_message()
        return dataclasses.replace(end, state="failed", exit_code=error.exit_code, message=message)
    known = error if isinstance(error, RankZeroError) else RankZeroError(str(error))
    return dataclasses.replace(
        end,
        state="interrupted" if isinstance(error, Interrupted) else "failed",
        exit_code=known.exit_code,
        message=known.what,
        rule=known.rule,
        remedy=known.fix,
    )


def _join(folder: Path, world: World) -> RankRecord:
    # torchrun and Accelerate set the first name, DeepSpeed's launcher the second.
    local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    record = RankRecord(
        rank=world.rank,
        world_size=world.world_size,
        local_world_size=int(local) if local and local.isdigit() else world.world_size,
        pid=os.getpid(),
        host=socket.gethostname(),
        created=psutil.Process().create_time(),
    )
    _write(folder, record)
    log = log_path(folder, world.rank)
    if not world.is_rank_zero:
        speak_into(log)
    faulthandler.enable()  # a crash of a native library leaves its stack in the log
    threading.Thread(target=_end_with_launcher, args=(log,), daemon=True).start()
    return record


def _write(folder: Path, record: RankRecord) -> bool:
    """Write the record; false where a full disk did not let it."""
    try:
        write_last_word(record_path(folder, record.rank), dataclasses.asdict(record))
    except OSError:  # it must not hide the error that is on its way out
        return False
    return True


def speak_into(log: Path) -> None:
    """Let this process's stdout and stderr, its libraries' included, go to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError:
        return
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _end_with_launcher(log: Path) -> None:
    """Stop this process when the launcher is dead.

    Every engine lets its workers inherit stdin, and this one is a pipe that the launcher alone
    holds open: it ends when the launcher does, even by SIGKILL.
    """
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    speak_into(log)  # nobody reads the other end: the next print would be an error of its own
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LIFELINE_SECONDS)
    os._exit(Interrupted.exit_code)
