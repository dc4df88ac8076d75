"""The merge that follows training, in a process of its own: gated, and stopped on request."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

from trainer import interruption
from trainer.errors import INTERRUPTED_BY_KEYBOARD, Interrupted, RankZeroError, TrainingFailed
from trainer.requirements import check_requirements
from trainer.run_directory import RunDirectory

_POLL_SECONDS = 0.2
_STOPPED = (
    Interrupted.exit_code,
    INTERRUPTED_BY_KEYBOARD,  # Ctrl-C reaches every process of a terminal
    *(-number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)),
)
"""How the merge ends on request; by the bare signal while it is still starting."""


def merge_after_training(run: RunDirectory) -> None:
    """Merge in a process of its own: DeepSpeed's hooks into model loading stay behind.

    What an earlier end of this run was merged into is replaced. From here on a request to stop
    is the merge's, which keeps what it has finished.

    Ranks: rank 0 only.
    Raises: GateFailed, Interrupted; TrainingFailed with the exit code of the merge, which has said
    why.
    """
    check_requirements(run.adapter)  # here, so that status.json tells what does not hold
    interruption.defer()
    interruption.stop_if_requested()
    code = _carry_out([sys.executable, "-m", "trainer.merge", str(run.path), "--replace"])
    if code in _STOPPED:
        raise _stopped()
    if code:
        raise _failed(run, code)


def _carry_out(command: Sequence[str]) -> int:
    """Run a command and return its exit code; the first request to stop is passed on to it.

    Raises: Interrupted on a second request, which kills it.
    """
    process = subprocess.Popen(command)
    is_asked = False
    try:
        while True:
            try:
                return process.wait(timeout=_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if interruption.requested() is not None and not is_asked:
                    process.terminate()
                    is_asked = True
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()


def _stopped() -> Interrupted:
    request = interruption.requested()
    by = "" if request is None else f" by {request.name}"
    return Interrupted(
        f"stopped{by} while merging; the adapter is complete, finished shards are kept",
        fix="run the same command again to go on",
    )


def _failed(run: RunDirectory, code: int) -> RankZeroError:
    how = "failed" if code > 0 else f"was killed by signal {-code}"
    error = TrainingFailed(
        f"the merge after training {how}",
        rule="the adapter is complete, only merged/ is missing",
        fix=f"see the error above, then: rankzero merge {shlex.quote(str(run.path))}",
    )
    error.exit_code = code if code > 0 else TrainingFailed.exit_code
    return error
