"""The requests that find a run on a cluster and say how it stands: few, and in a fixed order."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.kubernetes.client.api import Api
from launcher.kubernetes.client.observe import RunState, Wait, observe, observe_pod, run_of
from launcher.kubernetes.client.pending import (
    explains_itself,
    unbound_claims,
    why_no_pods,
    why_pod_waits,
    why_queued,
)
from launcher.kubernetes.client.refusal import Refusal
from launcher.kubernetes.client.resources import WORKLOAD_KINDS, Object, name_of, uid_of
from launcher.kubernetes.names import APPLICATION, labels, selector_labels

_NAME_LABEL, _OWNER_LABEL = "app.kubernetes.io/name", "app.kubernetes.io/managed-by"
_KUEUE_JOB = "kueue.x-k8s.io/job-uid"
_MOST_ASKED = 4
"""Pods whose events are read at a time: nodes of one run wait for the same, as a rule."""


def find_workloads(api: Api, name: str) -> list[Object]:
    """Return what carries a run of this name out: a Job, TrainJob or JobSet, as a rule one.

    A controller that is not installed, or that one may not see, has none.
    """
    found = [_get_if_allowed(api, kind, name) for kind in WORKLOAD_KINDS.values()]
    return [each for each in found if each is not None and not _is_made_by_another(each)]


def read_state(api: Api, kind: str, name: str) -> RunState | None:
    """Return how a run stands; None when its Job, JobSet or TrainJob is gone."""
    workload = api.get(kind, name)
    if workload is None:
        return None
    pods = read_pods(api, name)
    jobs = [] if kind == "Job" else api.list("Job", labels=selector_labels(name))
    return _with_waits(api, workload, jobs, pods)


def read_pods(api: Api, name: str) -> list[Object]:
    """Return all pods that the cluster still has of a run."""
    return api.list("Pod", labels=selector_labels(name))


def read_all_states(api: Api) -> list[RunState]:
    """Return every run of the namespace, by name. What single pods wait for is not looked up."""
    ours = {_NAME_LABEL: APPLICATION}
    workloads = [
        each
        for kind in WORKLOAD_KINDS.values()
        for each in _list_if_allowed(api, kind, ours)
        if not _is_made_by_another(each)
    ]
    pods = api.list("Pod", labels=ours) if workloads else []
    states = [
        observe(
            each,
            [],
            own := [pod for pod in pods if run_of(pod) == name_of(each)],
            pod_waits=_waits(own),
        )
        for each in workloads
    ]
    return sorted(states, key=lambda state: state.name)


def owned(api: Api, kind: str, name: str) -> list[str]:
    """Return the names of a run's objects of one kind, of those that we made."""
    own = labels(name)
    wanted = {**selector_labels(name), _OWNER_LABEL: own[_OWNER_LABEL]}
    return [name_of(each) for each in _list_if_allowed(api, kind, wanted)]


def _waits(pods: list[Object]) -> dict[str, Wait]:
    found = {name_of(pod): why_pod_waits(pod, [], {}) for pod in pods}
    return {name: wait for name, wait in found.items() if wait is not None}


def _with_waits(api: Api, workload: Object, jobs: list[Object], pods: list[Object]) -> RunState:
    plain = observe(workload, jobs, pods)
    if plain.is_over or plain.phase == "ending":
        return plain
    if plain.phase == "queued":
        admissions = []
        if plain.queue is not None:
            admissions = _list_if_allowed(api, "Workload", {_KUEUE_JOB: plain.uid})
        return observe(workload, jobs, pods, wait=why_queued(workload, admissions))
    if not pods:
        makers = jobs or [workload]
        wait = why_no_pods([event for job in makers for event in _events(api, uid_of(job))])
        return observe(workload, jobs, pods, wait=wait)
    waiting = [pod for pod in pods if observe_pod(pod).phase == "waiting"]
    waits = _waits(waiting)
    for pod in waiting[:_MOST_ASKED]:
        events = [] if explains_itself(pod) else _events(api, uid_of(pod))
        wait = why_pod_waits(pod, events, _claims(api, pod))
        if wait is not None:
            waits[name_of(pod)] = wait
    return observe(workload, jobs, pods, pod_waits=waits)


def _claims(api: Api, pod: Object) -> dict[str, tuple[Object | None, list[Object]]]:
    found = {}
    for name in unbound_claims(pod):
        claim = api.get("PersistentVolumeClaim", name)
        is_open = claim is not None and (claim.get("status") or {}).get("phase") != "Bound"
        found[name] = (claim, _events(api, uid_of(claim)) if claim and is_open else [])
    return found


def _events(api: Api, uid: str) -> list[Object]:
    """Events make waiting clearer; one who may not read them still sees that it waits."""
    try:
        return api.list("Event", fields=f"involvedObject.uid={uid}")
    except Refusal:
        return []


def _get_if_allowed(api: Api, kind: str, name: str) -> Object | None:
    try:
        return api.get(kind, name)
    except Refusal as refusal:
        if kind == "Job" or refusal.answer.code != 403:
            raise
        return None


def _list_if_allowed(api: Api, kind: str, wanted: Mapping[str, str]) -> list[Object]:
    try:
        return api.list(kind, labels=wanted)
    except Refusal as refusal:
        if kind == "Job" or refusal.answer.code not in (403, 404):
            raise
        return []


def _is_made_by_another(workload: Object) -> bool:
    return any(
        owner.get("controller") for owner in workload["metadata"].get("ownerReferences") or []
    )
