"""What a run on a cluster came to, as the error and exit code it would have had here. PURE."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.kubernetes.client.observe import Ended, PodState, RunState
from launcher.kubernetes.manifests.failure_policy import ACTIONS
from trainer.errors import (
    BY_EXIT_CODE,
    BY_NAME,
    EnvironmentProblem,
    Interrupted,
    OutOfMemory,
    PeerLost,
    RankZeroError,
    TrainingFailed,
)

_FAIL_AT_ONCE = {each.exit_code for each, action in ACTIONS.items() if action == "FailJob"}
_KILLED = 137
"""128 + SIGKILL."""
_STOPPED_BY_CLUSTER = (Interrupted.exit_code, 143)
_RESUMES = "submit it again: it goes on from its newest checkpoint"
_TAIL_LINES = 8
# How the command line prints an error, where the container left no record but its last lines.
_PRINTED = re.compile(
    r"^error: (?P<what>.*?)(?:\n  rule: (?P<rule>.*?))?(?:\n  fix:  (?P<fix>.*?))?\s*\Z",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class LastWord:
    """What a container wrote last."""

    what: str
    rule: str = ""
    fix: str = ""
    error: str = ""
    """Name of the error's class."""


def judge(state: RunState) -> RankZeroError | None:
    """Return the error that ended a run which is over; None when it is complete."""
    if state.phase == "completed":
        return None
    reason, message = state.verdict or ("", "")
    cause = _first_cause(state.pods, reason)
    if cause is not None and reason != "DeadlineExceeded":
        return explain(cause, num_nodes=len(state.current))
    if reason == "DeadlineExceeded":
        waits = next((pod.wait.text for pod in state.current if pod.wait), "")
        return EnvironmentProblem(
            f"{state.name} was ended by its deadline"
            + (f"; last it waited: {waits}" if waits else ""),
            rule="the Job's activeDeadlineSeconds, which the cluster or a queue has set",
            fix=_RESUMES,
        )
    return EnvironmentProblem(
        f"{state.name} failed: {message or reason or 'the cluster does not say why'}",
        rule="the pods that could say more are gone",
        fix="each attempt's logs are in the run directory, under attempts/, on the runs volume",
    )


def deleted(name: str) -> Interrupted:
    """Return the outcome of a run that somebody deleted, or put another in the place of."""
    return Interrupted(
        f"{name} was deleted",
        rule="its pods save before they end, if the cluster gives them the time",
        fix=_RESUMES,
    )


def never_pulled(name: str, text: str) -> EnvironmentProblem:
    """Return the outcome of a run whose image did not come, which no Job gives up by itself."""
    return EnvironmentProblem(
        f"{name} waits for its image in vain: {text}",
        rule="every machine can pull the image, which --image names",
        fix="cancel it (rankzero cancel), push the image or mend its name, and submit again",
    )


def explain(pod: PodState, *, num_nodes: int) -> RankZeroError:
    """Return a failed pod's end as the error it had there."""
    assert pod.ended is not None
    ended, who = pod.ended, f"node {pod.index}" if num_nodes > 1 else "the pod"
    rule = f"{who} ({pod.name}{f' on {pod.machine}' if pod.machine else ''}) {_how(ended)}"
    if ended.exit_code is None:
        return EnvironmentProblem(
            f"{who} was taken away: {ended.message or ended.reason}", rule=rule, fix=_RESUMES
        )
    if ended.reason == "OOMKilled":
        return OutOfMemory(
            f"{who} was killed: it used all the memory a pod of the run may have",
            rule=rule,
            fix="lower training.dataloader_workers, or name a profile with more host memory",
        )
    if ended.exit_code == _KILLED:
        return TrainingFailed(f"{who} was killed (SIGKILL)", rule=rule, fix=_RESUMES)
    word = read_last_word(ended.message)
    named = BY_NAME.get(word.error)
    known = BY_EXIT_CODE.get(ended.exit_code, TrainingFailed)
    if named is not None and named.exit_code == ended.exit_code:
        known = named
    what = word.what or f"{who} ended without a word"
    # The record of an end has no rule; where the pod ended is worth more than none.
    return known(what, rule=word.rule or rule, fix=word.fix)


def read_last_word(message: str) -> LastWord:
    """Read a termination message: our record, or the last lines of the log."""
    try:
        record = json.loads(message)
    except ValueError:
        record = None
    if isinstance(record, dict) and "message" in record:
        what = str(record["message"])
        if record.get("exit_code") == RankZeroError.exit_code:  # a bug's type says more
            what = f"{record.get('error')}: {what}".removesuffix(": ")
        return LastWord(what, "", str(record.get("remedy") or ""), str(record.get("error") or ""))
    tail = message[message.rfind("\nerror: ") + 1 :]
    printed = _PRINTED.search(tail)
    if printed:
        return LastWord(printed["what"], printed["rule"] or "", printed["fix"] or "")
    return LastWord("\n  ".join(message.splitlines()[-_TAIL_LINES:]))


def summarize(ended: Ended) -> str:
    """Return an end in one line."""
    if ended.exit_code is None:
        return f"{ended.reason}: {ended.message}".strip(": ")
    if ended.exit_code == 0:
        return "complete"
    if ended.exit_code == Interrupted.exit_code:
        return f"exit {ended.exit_code}, saved"
    if ended.reason == "OOMKilled":
        return f"exit {ended.exit_code}, out of memory"
    words = read_last_word(ended.message).what.splitlines()
    return f"exit {ended.exit_code}" + (f": {words[0]}" if words else "")


def _how(ended: Ended) -> str:
    if ended.exit_code is None:
        return f"ended without its container ({ended.reason})"
    detail = f", {ended.reason}" if ended.reason not in ("", "Error") else ""
    return f"ended with exit code {ended.exit_code}{detail}"


def _first_cause(pods: Sequence[PodState], reason: str) -> PodState | None:
    """Return the pod that ended first in the last try, and did not end because of another."""
    failed = [pod for pod in pods if pod.phase == "failed"]
    if reason == "PodFailurePolicy":
        at_once = [pod for pod in failed if pod.ended and pod.ended.exit_code in _FAIL_AT_ONCE]
        failed = at_once or failed
    last_try = {pod.index: pod for pod in failed}.values()  # oldest first: the newest stays
    return min(last_try, key=_blame, default=None)


def _blame(pod: PodState) -> tuple[bool, bool, str, int]:
    """Sort causes before consequences, then by time."""
    assert pod.ended is not None
    is_lost_peer = read_last_word(pod.ended.message).error == PeerLost.__name__
    was_stopped = pod.ended.exit_code in _STOPPED_BY_CLUSTER
    return was_stopped, is_lost_peer, pod.ended.at or "~", pod.index
