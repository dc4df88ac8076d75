"""Why an attempt ended, from what its ranks wrote and how its processes ended. PURE."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer.attempt import RankRecord
from trainer.errors import (
    BY_EXIT_CODE,
    INTERRUPTED_BY_KEYBOARD,
    Interrupted,
    OutOfMemory,
    PeerLost,
    RankZeroError,
    TrainingFailed,
)

REMEDIES = {
    "SIGKILL": "most often the machine ran out of memory: lower data.max_length or the batch size",
    "SIGSEGV": "a native library crashed: compare its version with the pinned ones",
    "SIGBUS": "shared memory is too small (/dev/shm): enlarge it, or set dataloader_workers to 0",
}
_OUT_OF_MEMORY = "give the machine or container more memory, start fewer processes, or lower "
_TAIL_LINES = 8
_REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WITH_ANOTHER = "while working with another rank"
"""How the message of a rank ends that another one's stop broke off (trainer.failures)."""


@dataclass(frozen=True)
class RankEnd:
    """One rank of this machine when all is over."""

    record: RankRecord
    last_seen: float
    """When its process was last known to live, in seconds since 1970."""
    exit_code: int | None = None
    """Negative: the signal. None when nobody said."""
    was_ended_here: bool = False
    """The launcher was already ending everything when it went."""

    @property
    def is_silent(self) -> bool:
        return self.record.state == "running"

    @property
    def time(self) -> float:
        return self.record.ended if self.record.ended is not None else self.last_seen


@dataclass(frozen=True)
class Evidence:
    """What is known besides the ranks' own words."""

    engine: str
    """The engine's command, short."""
    engine_code: int
    requests: tuple[signal.Signals, ...] = ()
    """Signals that asked the launcher to stop."""
    was_oom: bool = False
    """The kernel ended a process for want of memory during the attempt."""
    how_to_go_on: str = ""


@dataclass(frozen=True)
class Verdict:
    """Why the run did not complete; the rank whose end caused it, when it was one."""

    state: str
    error: RankZeroError
    name: str
    rank: int | None = None
    is_silent: bool = False
    """The rank said nothing: its log is all there is."""


def judge(ranks: Sequence[RankEnd], evidence: Evidence) -> Verdict | None:
    """Return why an attempt did not complete; None when it did."""
    if ranks and all(end.record.state == "completed" for end in ranks):
        is_complete = len(ranks) >= ranks[0].record.local_world_size
        if is_complete or evidence.engine_code == 0:
            return None
    causes = [end for end in ranks if _is_cause(end, evidence)]
    if causes:
        return _blame(min(causes, key=lambda end: end.time), ranks, evidence)
    interrupted = [end for end in ranks if end.record.state == "interrupted"]
    was_killed = evidence.engine_code < 0 and -evidence.engine_code not in _REQUESTS
    if evidence.requests or (interrupted and not was_killed):
        return _interrupted(interrupted, evidence)
    lost = [end for end in ranks if end.record.error == PeerLost.__name__]
    if lost:  # the cause is on another machine
        return _blame(min(lost, key=lambda end: end.time), ranks, evidence)
    return _engine_failed(evidence)


def _is_cause(end: RankEnd, evidence: Evidence) -> bool:
    if end.record.state == "failed":
        return end.record.error != PeerLost.__name__
    # After a request to stop, a rank that had no time to say so is none.
    return end.is_silent and not end.was_ended_here and not evidence.requests


def _blame(end: RankEnd, ranks: Sequence[RankEnd], evidence: Evidence) -> Verdict:
    if end.is_silent:
        death = _silent(end, evidence)
        return Verdict("failed", death, type(death).__name__, end.record.rank, is_silent=True)
    record = end.record
    what = record.message or record.error
    if record.exit_code == RankZeroError.exit_code:  # a bug: its type says more than its text
        what = f"{record.error}: {record.message}".removesuffix(": ")
    failed = [other.record for other in ranks if other.record.state == "failed"]
    code = record.exit_code or RankZeroError.exit_code
    # What every rank says, such as a mistake in the config, is no rank's own.
    is_shared = len(failed) == len(ranks) and len({other.message for other in failed}) == 1
    if record.world_size > 1 and not is_shared:
        what = f"rank {record.rank}: {what}"
        if code == RankZeroError.exit_code:  # the others could go on: a rank died
            code = TrainingFailed.exit_code
    error = _error(code, what, record.rule, record.remedy)
    if record.error == OutOfMemory.__name__:
        error = OutOfMemory(what, rule=record.rule, fix=record.remedy)
    return Verdict("failed", error, record.error, record.rank)


def _silent(end: RankEnd, evidence: Evidence) -> TrainingFailed:
    record, code = end.record, end.exit_code
    who = f"rank {record.rank} (pid {record.pid}, host {record.host})"
    rule = "every rank works until the run is complete, and the others cannot go on without it"
    if code is None or code == -signal.SIGKILL:
        if evidence.was_oom:
            return OutOfMemory(
                f"{who} was killed (SIGKILL) when memory ran out, by the system's "
                "out-of-memory killer",
                rule="the processes of a run must fit into the memory of their machine",
                fix=f"{_OUT_OF_MEMORY}training.max_tokens_per_device",
            )
        if code is None:
            return TrainingFailed(f"{who} vanished without a word", rule=rule, fix=_SEE_LOG)
    if code is not None and code < 0:
        name = signal_name(-code)
        what = f"{who} was killed by {name}"
        return TrainingFailed(what, rule=rule, fix=REMEDIES.get(name, _SEE_LOG))
    return TrainingFailed(
        f"{who} ended with code {code} before the run was complete", rule=rule, fix=_SEE_LOG
    )


_SEE_LOG = "see the last lines of its log for what it was doing"


def _interrupted(interrupted: Sequence[RankEnd], evidence: Evidence) -> Verdict:
    """Tell it in the words of a rank that knows more than that another stopped, best rank 0's."""
    knowing = [end for end in interrupted if not end.record.message.endswith(WITH_ANOTHER)]
    first = min(
        knowing or interrupted, key=lambda end: (end.record.rank > 0, end.time), default=None
    )
    if evidence.requests:
        error = interrupted_by(evidence.requests[0])
    else:
        assert first is not None
        error = Interrupted(first.record.message)
    codes = {end.record.exit_code for end in interrupted}
    if codes:  # Ctrl-C counts as one only where every rank says so: the others may have saved
        is_keyboard = codes == {INTERRUPTED_BY_KEYBOARD}
        error.exit_code = INTERRUPTED_BY_KEYBOARD if is_keyboard else Interrupted.exit_code
    if knowing and first is not None:
        error.what = first.record.message
    error.fix = evidence.how_to_go_on
    rank = first.record.rank if first is not None else None
    return Verdict("interrupted", error, Interrupted.__name__, rank)


def interrupted_by(request: signal.Signals) -> Interrupted:
    """Return the error of a command that a signal stopped; Ctrl-C has an exit code of its own."""
    error = Interrupted(f"stopped by {request.name}")
    if request == signal.SIGINT:
        error.exit_code = INTERRUPTED_BY_KEYBOARD
    return error


def _engine_failed(evidence: Evidence) -> Verdict:
    code = evidence.engine_code
    how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with code {code}"
    error = TrainingFailed(
        f"{evidence.engine} {how}, and no rank said why",
        rule="an engine starts every rank and waits for all of them",
        fix=REMEDIES.get(signal_name(-code), "see its last lines above")
        if code < 0
        else "see its last lines above",
    )
    return Verdict("failed", error, TrainingFailed.__name__)


def _error(exit_code: int, what: str, rule: str, fix: str) -> RankZeroError:
    error = BY_EXIT_CODE.get(exit_code, RankZeroError)(what, rule=rule, fix=fix)
    error.exit_code = exit_code
    return error


def signal_name(number: int) -> str:
    """Return SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def exit_codes_in(text: str, pids: Iterable[int]) -> dict[int | None, int]:
    """Return the exit codes of `pids` that an engine's output tells.

    torchrun's report leaves out those that ended with 0. DeepSpeed names no process for the one
    that ended first: it comes under None.
    Source: torch.distributed.elastic (torch 2.13), deepspeed.launcher.launch (0.19).
    """
    codes: dict[int | None, int] = {}
    if "Root Cause (first observed failure)" in text:
        codes.update(dict.fromkeys(pids, 0))
    for code, pid in re.findall(r"exitcode\s*: (-?\d+) \(pid: (\d+)\)", text):
        codes[int(pid)] = int(code)
    for pid in re.findall(r"Process (\d+) exits successfully", text):
        codes[int(pid)] = 0
    first = re.search(r"exits with return code = (-?\d+)", text)
    if first:
        codes[None] = int(first.group(1))
    return codes


def last_lines(text: str) -> list[str]:
    """Return the last lines of a log that say something."""
    return [line for line in text.splitlines() if line.strip()][-_TAIL_LINES:]
