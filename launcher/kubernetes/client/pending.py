"""Why a pod, or a whole run, does not run yet, in the cluster's own words. PURE."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launcher.kubernetes.client.observe import QUEUE_LABEL, Wait
from launcher.kubernetes.client.resources import Object, true_condition

# Source: kubernetes/pkg/kubelet/images/types.go.
_IMAGE_REASONS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
)
_BEING_MADE = ("ContainerCreating", "PodInitializing")
_WHILE_MADE = (
    "FailedMount",
    "FailedAttachVolume",
    "FailedCreatePodSandBox",
    "FailedCreatePodContainer",
)
"""Reasons of events about a pod whose container cannot be made."""

_POD_REFUSED = re.compile(r'^(Error creating: )?(pods "[^"]*" is forbidden: )?')


def explains_itself(pod: Object) -> bool:
    """Whether the pod alone says what it waits for; else its events may."""
    waiting = _waiting(pod)
    reason, message = waiting.get("reason", ""), waiting.get("message") or ""
    if reason in _IMAGE_REASONS:
        # Until Kubernetes 1.30 a back-off does not say what failed.
        return not message.startswith("Back-off") or "ErrImagePull" in message
    return (bool(waiting) and reason not in _BEING_MADE) or not _is_scheduled(pod)


def unbound_claims(pod: Object) -> list[str]:
    """Return the claims to look at when the scheduler waits for volumes."""
    message = _scheduler_words(pod)
    if "persistentvolumeclaim" not in message.lower().replace(" ", ""):
        return []
    volumes = pod["spec"].get("volumes") or []
    return [
        each["persistentVolumeClaim"]["claimName"]
        for each in volumes
        if "persistentVolumeClaim" in each
    ]


def why_pod_waits(
    pod: Object, events: Sequence[Object], claims: Mapping[str, tuple[Object | None, list[Object]]]
) -> Wait | None:
    """Return what a pod waits for; None when nothing hinders it.

    `events`: those about the pod; `claims`: what it mounts, with their events, if the scheduler
    waits for it.
    """
    waiting = _waiting(pod)
    reason, message = waiting.get("reason", ""), waiting.get("message") or ""
    if reason in _IMAGE_REASONS:
        return Wait("image", f"{reason}: {_last_warning(events, ('Failed',)) or message}")
    if waiting and reason not in _BEING_MADE:
        return Wait("container", f"{reason}: {message}".removesuffix(": "))
    if not _is_scheduled(pod):
        unbound: dict[str, list[str]] = {}
        for name, found in claims.items():
            why = _why_unbound(*found)
            if why:
                unbound.setdefault(why, []).append(name)
        if unbound:
            told = [f"{', '.join(names)}: {why}" for why, names in unbound.items()]
            return Wait("volume", "; ".join(told))
        return Wait("machine", _scheduler_words(pod) or "the scheduler has not looked at it yet")
    made = _last_warning(events, _WHILE_MADE)
    if made:
        is_volume = "Volume" in made or "volume" in made
        return Wait("volume" if is_volume else "container", made)
    return None


def why_no_pods(events: Iterable[Object]) -> Wait | None:
    """Return why a Job has made no pods, from the events about it."""
    text = _last_warning(events, ("FailedCreate",))
    if text is None:
        return None
    # Each try has a pod name of its own, and says the same.
    words = _POD_REFUSED.sub("", text)
    return Wait("quota" if "exceeded quota" in words else "container", words)


def why_queued(workload: Object, admissions: Sequence[Object]) -> Wait:
    """Return why a run is held back. `admissions`: Kueue's own objects about it."""
    queue = (workload["metadata"].get("labels") or {}).get(QUEUE_LABEL)
    if queue is None:
        return Wait("queue", "it is suspended, and names no queue that would start it")
    for each in admissions:
        for condition in (each.get("status") or {}).get("conditions") or []:
            if condition["type"] == "QuotaReserved" and condition["status"] == "False":
                return Wait("queue", f"{queue}: {condition.get('message')}")
    return Wait("queue", f"{queue} has not admitted it yet")


def _why_unbound(claim: Object | None, events: Iterable[Object]) -> str:
    if claim is None:
        return "there is no such claim"
    if (claim.get("status") or {}).get("phase") == "Bound":
        return ""
    why = _last_warning(events, ("ProvisioningFailed", "FailedBinding"))
    if why is None:
        spec = claim["spec"].get("storageClassName")
        why = f"storage class {spec}" if spec else "no storage class, and no default one"
    return f"not bound, {why}"


def _waiting(pod: Object) -> dict[str, Any]:
    for each in (pod.get("status") or {}).get("containerStatuses") or []:
        waiting = (each.get("state") or {}).get("waiting")
        if waiting:
            return dict(waiting)
    return {}


def _is_scheduled(pod: Object) -> bool:
    return bool(pod["spec"].get("nodeName")) or true_condition(pod, "PodScheduled") is not None


def _scheduler_words(pod: Object) -> str:
    for each in (pod.get("status") or {}).get("conditions") or []:
        if each["type"] == "PodScheduled" and each["status"] == "False":
            words = str(each.get("message") or each.get("reason") or "")
            return words.partition(" preemption:")[0]  # which repeats the numbers
    return ""


def _last_warning(events: Iterable[Object], reasons: Sequence[str]) -> str | None:
    # FailedBinding says, as a normal event, that no volume is there and no class could make one.
    found = [each for each in events if each.get("reason") in reasons]
    if not found:
        return None
    newest = max(found, key=_time)
    return str(newest.get("message") or newest["reason"]).strip()


def _time(event: Object) -> str:
    times = (event.get("lastTimestamp"), event.get("eventTime"), event.get("firstTimestamp"))
    return next((time for time in times if time), "")
