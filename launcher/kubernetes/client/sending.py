"""Send a run to a cluster: all of it is tried first, and nothing is made when a part is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.kubernetes.client.api import Api
from launcher.kubernetes.client.claims import find_claim_problem
from launcher.kubernetes.client.pace import Pace
from launcher.kubernetes.client.reading import find_workloads, read_pods
from launcher.kubernetes.client.refusal import Refusal
from launcher.kubernetes.client.resources import Object, name_of
from launcher.kubernetes.client.submission import Step, Submission, decide
from trainer.errors import ConfigError, EnvironmentProblem

# Kubeflow's webhook, and Kueue's, look the runtime up, which a dry run has not made.
# Source: trainer, pkg/runtime/core/trainingruntime.go; kueue, pull request 9571.
_NO_RUNTIME_YET = (
    re.compile("must be created before the TrainJob"),
    re.compile("vtrainjob.*runtime.*not found", re.DOTALL),
)
_LOOKS_AT_RUNTIME = 10
# A webhook of the cluster's that has effects elsewhere: it can only be asked in earnest.
# Source: kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers,
# "Side effects".
_NOT_DRY = "does not support dry run"


@dataclass(frozen=True)
class Tried:
    """What is to be done, once the API server has checked every part."""

    step: Step
    existing: tuple[Object, ...]
    """Workloads that have the run's name already."""
    missing_claims: tuple[str, ...]


def try_out(api: Api, submission: Submission) -> Tried:
    """Look what is there, and let the API server check every object (server-side dry run).

    Raises: ConfigError when something else is at work under this name; EnvironmentProblem with
    all that was refused.
    """
    problems: list[str] = []
    existing: list[Object] = []
    try:
        existing = find_workloads(api, submission.name)
    except Refusal as refusal:
        problems.append(refusal.to_problem())
    step = decide(submission, existing)
    if step == "follow":
        return Tried(step, tuple(existing), ())
    missing = _check_claims(api, submission, problems)
    for value, send in _steps(api, submission, missing):
        try:
            send(value, is_dry_run=True)
        except Refusal as refusal:
            if not _is_expected(refusal, value, submission):
                problems.append(refusal.to_problem())
    if problems:
        raise _refused(submission, problems)
    return Tried(step, tuple(existing), tuple(missing))


def _check_claims(api: Api, submission: Submission, problems: list[str]) -> list[str]:
    """Add what is wrong with volumes that are there, and return those that are not."""
    missing: list[str] = []
    for wanted in submission.volumes:
        try:
            claim = api.get("PersistentVolumeClaim", wanted.name)
        except Refusal as refusal:
            problems.append(refusal.to_problem())
            continue
        if claim is None and wanted.size is not None:
            missing.append(wanted.name)
        problem = find_claim_problem(wanted, claim)
        problems += [problem] if problem else []
    return missing


def make(api: Api, submission: Submission, missing_claims: Sequence[str], pace: Pace) -> None:
    """Make everything; what carries the run out comes last."""
    *needs, (workload, create) = _steps(api, submission, missing_claims)
    for value, send in needs:
        send(value)
    for look in pace.looks():
        try:
            create(workload)
        except Refusal as refusal:
            # A webhook sees a new runtime a moment after it was made.
            if not _lacks_its_runtime(refusal) or look >= _LOOKS_AT_RUNTIME:
                raise
        else:
            return


def remove_finished(
    api: Api, workloads: Sequence[Object], pace: Pace, say: Callable[[str], None]
) -> None:
    """Delete what carried an earlier start out, with its pods, and wait until it is gone."""
    for each in workloads:
        kind, name = each["kind"], name_of(each)
        say(f"removing {kind} {name} of the earlier start, which is over")
        api.delete(kind, name)
        looks_without_pods = 0
        for _ in pace.looks():
            if api.get(kind, name) is None:
                break
            # Pods that still save have their grace period, which may be long.
            looks_without_pods = 0 if read_pods(api, name) else looks_without_pods + 1
            if looks_without_pods <= pace.patience:
                continue
            raise EnvironmentProblem(
                f"{kind} {name} does not go away",
                rule="its name is free once its last pod has ended",
                fix=f"look what keeps it: kubectl describe {kind.lower()} {name} "
                f"--namespace {api.namespace}; then submit again",
            )


def _steps(
    api: Api, submission: Submission, missing_claims: Sequence[str]
) -> list[tuple[Object, Callable[..., Object]]]:
    new = [each for each in submission.claims if name_of(each) in missing_claims]
    # A volume cannot be changed, and a Job hardly: those are made, the rest is brought up to date.
    return [
        *((each, api.create) for each in new),
        *((each, api.apply) for each in submission.others),
        (submission.workload, api.create),
    ]


def _is_expected(refusal: Refusal, value: Object, submission: Submission) -> bool:
    if _NOT_DRY in refusal.answer.message:
        return True
    if value is not submission.workload:
        return False
    # The one that is over is still there. Its place is checked last of all, so the rest is fine.
    is_there = refusal.answer.code == 409 and refusal.answer.reason == "AlreadyExists"
    return is_there or _lacks_its_runtime(refusal)


def _lacks_its_runtime(refusal: Refusal) -> bool:
    return any(words.search(refusal.answer.message) for words in _NO_RUNTIME_YET)


def _refused(submission: Submission, problems: Sequence[str]) -> EnvironmentProblem:
    # A missing namespace, or one right, is said of every object: once is enough.
    distinct = list(dict.fromkeys(problems))
    error = ConfigError.from_problems(f"{submission.name} was not submitted", distinct)
    return EnvironmentProblem(error.what, rule="nothing is made when one part is refused")
