"""End a run on a cluster and remove its objects; volumes stay."""

from __future__ import annotations

from launcher.kubernetes.client.api import Api
from launcher.kubernetes.client.follow import Say
from launcher.kubernetes.client.observe import PodState, observe_pod
from launcher.kubernetes.client.outcome import summarize
from launcher.kubernetes.client.pace import Pace
from launcher.kubernetes.client.reading import find_workloads, owned, read_pods
from launcher.kubernetes.client.resources import is_being_deleted, name_of
from trainer.errors import ConfigError

_ACCESSORIES = ("TrainingRuntime", "Service", "NetworkPolicy", "ConfigMap")
"""Needed as long as there are pods: they save, and look each other up, until they end."""


def cancel_run(api: Api, name: str, pace: Pace, say: Say) -> list[str]:
    """Delete what carries a run out, wait until its pods have ended, then the rest.

    Return the volumes that stay.

    Raises: ConfigError when there is nothing of that name.
    """
    workloads = find_workloads(api, name)
    accessories = _find_accessories(api, name)
    if not workloads and not accessories:
        raise no_run(name, api.namespace)
    for each in workloads:
        if is_being_deleted(each):
            say(f"{each['kind']} {name_of(each)} is being deleted already")
        else:
            api.delete(each["kind"], name_of(each))
            say(f"deleting {each['kind']} {name_of(each)}")
    _wait(api, name, pace, say)
    for kind, own in accessories:
        api.delete(kind, own)
        say(f"deleted {kind} {own}")
    return owned(api, "PersistentVolumeClaim", name)


def no_run(name: str, namespace: str) -> ConfigError:
    """Make the error of a name that no run in this namespace has."""
    return ConfigError(
        f"there is no run {name} in namespace {namespace}",
        rule="a run is called after its output_dir: runs/medical is rankzero-medical",
        fix="`rankzero status` lists the runs of a namespace (--namespace, --context)",
    )


def _find_accessories(api: Api, name: str) -> list[tuple[str, str]]:
    return [(kind, own) for kind in _ACCESSORIES for own in owned(api, kind, name)]


def _wait(api: Api, name: str, pace: Pace, say: Say) -> None:
    """Wait for the last pod and what made it; the grace period, not we, bounds it."""
    said: set[str] = set()
    over_before: set[str] = set()
    for number in pace.looks():
        pods = [(pod, observe_pod(pod)) for pod in read_pods(api, name)]
        if number == 0:
            over_before = {state.uid for _, state in pods if state.ended is not None}
        for pod, state in pods:
            line = _farewell(state, pod["metadata"].get("deletionGracePeriodSeconds"))
            if line and line not in said and state.uid not in over_before:
                said.add(line)
                say(line)
        if not pods and not find_workloads(api, name):
            return


def _farewell(pod: PodState, grace_seconds: int | None) -> str:
    if pod.ended is not None:
        return f"{pod.name}: {summarize(pod.ended)}"
    if pod.phase == "ending":
        limit = f", in at most {grace_seconds} s" if grace_seconds else ""
        return f"{pod.name}: saves and ends{limit}"
    return ""
