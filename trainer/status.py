"""status.json: how the run stands, in one place. Launchers lose exit codes; this file does not."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from trainer.errors import INTERRUPTED_BY_KEYBOARD, Interrupted, PeerLost, RankZeroError
from trainer.run_directory import RunDirectory, write_json, write_last_word
from trainer.world import World

TERMINATION_LOG = Path("/dev/termination-log")
"""Kubernetes shows what a container writes here. Source: terminationMessagePath's default."""


@dataclass(frozen=True)
class Ending:
    """How a run ended that did not complete, as status.json tells it."""

    state: str
    """failed or interrupted."""
    exit_code: int
    rank: int | None
    error: str
    message: str
    remedy: str

    @classmethod
    def of(cls, error: BaseException, *, rank: int | None = None) -> Ending:
        """Return how an error ends a run, or Ctrl-C."""
        known = error if isinstance(error, RankZeroError) else RankZeroError(str(error))
        is_keyboard = isinstance(error, KeyboardInterrupt)
        return cls(
            state="interrupted" if is_keyboard or isinstance(error, Interrupted) else "failed",
            exit_code=INTERRUPTED_BY_KEYBOARD if is_keyboard else known.exit_code,
            rank=rank,
            error=type(error).__name__,
            message=known.what or type(error).__name__,
            remedy=known.fix,
        )


def write_preparing(run: RunDirectory) -> None:
    """Record that a launcher, this process, prepares a new run."""
    _write_at_work(run, "preparing")


def write_running(run: RunDirectory) -> None:
    """Ranks: rank 0 only."""
    _write_at_work(run, "running")


def _write_at_work(run: RunDirectory, state: str) -> None:
    process = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        # With the pid, which process it is: a restarted container gives the same pids again.
        "created": psutil.Process().create_time(),
    }
    write_json(run.status, {"state": state, **process, "started": time.time()})


def write_completed(run: RunDirectory) -> None:
    """Ranks: rank 0 only."""
    write_json(run.status, {"state": "completed", "exit_code": 0, "ended": time.time()})


def write_failed(run: RunDirectory, world: World, error: BaseException) -> None:
    """Record a failure, unless another rank's is there: the first one is the cause.

    A lost peer is not a cause: it gives way to whatever comes later.

    Ranks: the failing one.
    """
    if not run.path.is_dir():
        return
    status = run.read_status()
    if status.get("state") in ("failed", "interrupted") and status.get("error") != _LOST:
        return
    write_ending(run, Ending.of(error, rank=world.rank))


def write_verdict(run: RunDirectory, ending: Ending) -> None:
    """Record the launcher's verdict: it sees every rank of this machine, one that died included.

    A rank's own word for the same end stays, and so does any other when all that is known here is
    that a peer was lost.
    """
    status = run.read_status()
    same = ("state", "exit_code", "rank")
    if not run.path.is_dir() or all(status.get(key) == vars(ending)[key] for key in same):
        return
    if ending.error == _LOST and status.get("state") in ("failed", "interrupted"):
        return
    write_ending(run, ending)


def write_ending(run: RunDirectory, ending: Ending) -> None:
    """Write status.json and, in a container, what Kubernetes shows."""
    # On a full disk the error itself must still come out.
    with contextlib.suppress(OSError):
        write_last_word(run.status, _to_record(ending))
    write_termination_log(ending)


def write_termination_log(ending: Ending) -> None:
    """In a container, write what Kubernetes shows; status.json stays."""
    if TERMINATION_LOG.exists() and os.access(TERMINATION_LOG, os.W_OK):
        TERMINATION_LOG.write_text(json.dumps(_to_record(ending)), encoding="utf-8")


def _to_record(ending: Ending) -> dict[str, Any]:
    return {**vars(ending), "ended": time.time()}


_LOST = PeerLost.__name__
