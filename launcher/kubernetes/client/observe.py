"""How a run stands, from the objects the cluster has of it. PURE."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launcher.kubernetes.client.resources import (
    WORKLOAD_KINDS,
    Object,
    is_being_deleted,
    name_of,
    true_condition,
    uid_of,
)
from launcher.kubernetes.manifests.pod import CONTAINER
from trainer.errors import Interrupted

PodPhase = Literal["waiting", "running", "ending", "complete", "stopped", "failed"]
Phase = Literal["queued", "waiting", "running", "ending", "completed", "failed"]

COMPLETE = ("Complete", "Completed")
FAILED = ("Failed",)
"""Conditions of a Job, a JobSet and a TrainJob that is over."""
_INDEX = "batch.kubernetes.io/job-completion-index"
_INSTANCE = "app.kubernetes.io/instance"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_WORDS = {kind: word for word, kind in WORKLOAD_KINDS.items()}


@dataclass(frozen=True)
class Wait:
    """Why something does not run yet."""

    category: Literal["queue", "quota", "machine", "volume", "image", "container"]
    text: str


@dataclass(frozen=True)
class Ended:
    """How a pod ended. Without an exit code it was taken away before its container could."""

    exit_code: int | None
    reason: str
    """Kubernetes' word: Error, OOMKilled, Evicted ..."""
    message: str
    """What the container wrote last, or why it was taken away."""
    at: str


@dataclass(frozen=True)
class PodState:
    """One try of one node of the run."""

    name: str
    uid: str
    index: int
    phase: PodPhase
    machine: str | None
    created: str
    since: str
    """When it came into its phase, as far as the cluster says."""
    ended: Ended | None = None
    wait: Wait | None = None
    disruption: str | None = None
    """Why the cluster took it away."""
    has_log: bool = False


@dataclass(frozen=True)
class RunState:
    """A run as a whole."""

    name: str
    kind: str
    """job, jobset or trainjob."""
    uid: str
    phase: Phase
    created: str
    since: str
    pods: tuple[PodState, ...]
    """Every try that the cluster still has, oldest first."""
    queue: str | None = None
    wait: Wait | None = None
    """What the run as a whole waits for."""
    verdict: tuple[str, str] | None = None
    """Reason and message of the condition that ended it."""

    @property
    def is_over(self) -> bool:
        return self.phase in ("completed", "failed")

    @property
    def current(self) -> tuple[PodState, ...]:
        """The newest pod of each node."""
        newest = {pod.index: pod for pod in self.pods}
        return tuple(newest[index] for index in sorted(newest))

    @property
    def attempts(self) -> int:
        """How often the node that was started most often was."""
        return max(Counter(pod.index for pod in self.pods).values(), default=0)


def observe(
    workload: Object,
    jobs: Sequence[Object],
    pods: Sequence[Object],
    *,
    wait: Wait | None = None,
    pod_waits: Mapping[str, Wait] | None = None,
) -> RunState:
    """Return a run's state. `wait`: what all of it waits for, if known; `pod_waits`: by pod name.

    `jobs`: those that a JobSet or TrainJob has made.
    """
    states = sorted(
        (observe_pod(pod, (pod_waits or {}).get(name_of(pod))) for pod in pods),
        key=lambda pod: (pod.created, pod.name),
    )
    metadata, condition = workload["metadata"], _last_condition(workload)
    phase = _phase(workload, states)
    started = next((pod.since for pod in reversed(states) if pod.phase == "running"), None)
    since = (condition or {}).get("lastTransitionTime") or started
    return RunState(
        name=name_of(workload),
        kind=_WORDS[workload["kind"]],
        uid=uid_of(workload),
        phase=phase,
        created=metadata.get("creationTimestamp", ""),
        since=since or metadata.get("creationTimestamp", ""),
        pods=tuple(states),
        queue=(metadata.get("labels") or {}).get(QUEUE_LABEL),
        wait=wait,
        verdict=_verdict(workload, jobs),
    )


def run_of(value: Object) -> str:
    """Return the name of the run that an object belongs to."""
    return str((value["metadata"].get("labels") or {}).get(_INSTANCE, ""))


def is_finished(workload: Object) -> bool:
    """Whether a Job, JobSet or TrainJob is over, in whichever way."""
    return true_condition(workload, *COMPLETE, *FAILED) is not None


def observe_pod(pod: Object, wait: Wait | None = None) -> PodState:
    """Return the state of one pod."""
    status, metadata = pod.get("status") or {}, pod["metadata"]
    container = _container(status)
    ended = _ended(status, container)
    phase = _pod_phase(pod, container, ended)
    running = (container.get("state") or {}).get("running") or {}
    began = {
        "running": running.get("startedAt"),
        "ending": metadata.get("deletionTimestamp"),
    }
    disruption = true_condition(pod, "DisruptionTarget")
    return PodState(
        name=name_of(pod),
        uid=uid_of(pod),
        index=_index(metadata),
        phase=phase,
        machine=pod["spec"].get("nodeName"),
        created=metadata.get("creationTimestamp", ""),
        since=(ended.at if ended else began.get(phase)) or metadata.get("creationTimestamp", ""),
        ended=ended,
        wait=wait if phase == "waiting" else None,
        disruption=_words(disruption) if disruption else None,
        has_log=bool(running or (container.get("state") or {}).get("terminated")),
    )


def _index(metadata: Mapping[str, Any]) -> int:
    """A Job of one node gives its pod no index."""
    for place in ("annotations", "labels"):
        found = (metadata.get(place) or {}).get(_INDEX)
        if found is not None:
            return int(found)
    return 0


def _container(status: Mapping[str, Any]) -> dict[str, Any]:
    found = {each["name"]: each for each in status.get("containerStatuses") or []}
    return dict(found.get(CONTAINER) or next(iter(found.values()), {}))


def _ended(status: Mapping[str, Any], container: Mapping[str, Any]) -> Ended | None:
    terminated = (container.get("state") or {}).get("terminated")
    if terminated:
        return Ended(
            exit_code=terminated["exitCode"],
            reason=terminated.get("reason") or "",
            message=(terminated.get("message") or "").strip(),
            at=terminated.get("finishedAt") or "",
        )
    if status.get("phase") == "Failed":  # evicted, or refused by its machine
        return Ended(None, status.get("reason") or "", (status.get("message") or "").strip(), "")
    return None


def _pod_phase(pod: Object, container: Mapping[str, Any], ended: Ended | None) -> PodPhase:
    status = pod.get("status") or {}
    if ended is not None:
        if ended.exit_code == Interrupted.exit_code:
            return "stopped"
        return "complete" if ended.exit_code == 0 else "failed"
    if status.get("phase") == "Succeeded":
        return "complete"
    if is_being_deleted(pod):
        return "ending"
    return "running" if (container.get("state") or {}).get("running") else "waiting"


def _last_condition(workload: Object) -> Object | None:
    return true_condition(workload, *COMPLETE, *FAILED)


def _phase(workload: Object, pods: Sequence[PodState]) -> Phase:
    if true_condition(workload, *COMPLETE):
        return "completed"
    if true_condition(workload, *FAILED):
        return "failed"
    if is_being_deleted(workload):
        return "ending"
    if (workload.get("spec") or {}).get("suspend"):
        return "queued"
    newest = {pod.index: pod for pod in pods}
    return "running" if 0 in newest and newest[0].phase == "running" else "waiting"


def _verdict(workload: Object, jobs: Sequence[Object]) -> tuple[str, str] | None:
    """A set's own word names the Job that failed; that Job's word says why."""
    if true_condition(workload, *FAILED) is None:
        return None
    for each in (*jobs, workload):
        failed = true_condition(each, *FAILED)
        if failed is not None:
            return failed.get("reason") or "", failed.get("message") or ""
    return None


def _words(condition: Object) -> str:
    return str(condition.get("message") or condition.get("reason") or "")
