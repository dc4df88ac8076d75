"""status.json: how the run stands, in one place. Launchers lose exit codes; this file does not."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path

from trainer.errors import Interrupted, RankZeroError
from trainer.run_directory import RunDirectory, write_json
from trainer.world import World

TERMINATION_LOG = Path("/dev/termination-log")
"""Kubernetes shows what a container writes here. Source: terminationMessagePath's default."""


def write_running(run: RunDirectory) -> None:
    """Ranks: rank 0 only."""
    process = {"pid": os.getpid(), "host": socket.gethostname()}
    write_json(run.status, {"state": "running", **process, "started": time.time()})


def write_completed(run: RunDirectory) -> None:
    """Ranks: rank 0 only."""
    write_json(run.status, {"state": "completed", "exit_code": 0, "ended": time.time()})


def write_failed(run: RunDirectory, world: World, error: BaseException) -> None:
    """Record a failure, unless another rank's is there: the first one is the cause.

    Ranks: the failing one.
    """
    if not run.path.is_dir() or run.read_status().get("state") in ("failed", "interrupted"):
        return
    known = error if isinstance(error, RankZeroError) else RankZeroError(str(error))
    is_interrupted = isinstance(error, (Interrupted, KeyboardInterrupt))
    record = {
        "state": "interrupted" if is_interrupted else "failed",
        "exit_code": known.exit_code,
        "rank": world.rank,
        "error": type(error).__name__,
        "message": known.what or type(error).__name__,
        "remedy": known.fix,
        "ended": time.time(),
    }
    # On a full disk the error itself must still come out.
    with contextlib.suppress(OSError):
        write_json(run.status, record)
    if TERMINATION_LOG.exists() and os.access(TERMINATION_LOG, os.W_OK):
        TERMINATION_LOG.write_text(json.dumps(record), encoding="utf-8")
