"""The pod of one node of a run: the same for every kind of job. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher.kubernetes.cluster import (
    CONFIG_FILE,
    CONFIG_FOLDER,
    RENDEZVOUS_PORT,
    TOKENS_SECRET,
    Cluster,
)
from launcher.kubernetes.manifests.needs import PodNeeds, gib
from launcher.kubernetes.manifests.nodes import (
    affinity,
    nccl_environment,
    node_selector,
    tolerations,
)
from launcher.kubernetes.manifests.volumes import Claim, pod_volumes, writable_environment
from launcher.kubernetes.names import labels
from launcher.profile import Profile
from launcher.run_plan import RunPlan

CONTAINER = "node"
"""Kubeflow's Trainer looks for a container of this name."""
USER = 10_001
"""Above the ids that nodes give to people; the image runs as any."""
INDEX_VARIABLE = "JOB_COMPLETION_INDEX"
_INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True)
class Work:
    """What all pods of a run have in common."""

    name: str
    plan: RunPlan
    profile: Profile
    profile_argument: str
    """A shipped profile's name, or the path of one in the pod."""
    needs: PodNeeds
    claims: Sequence[Claim]
    cluster: Cluster

    @property
    def is_multi_node(self) -> bool:
        return self.plan.nodes > 1


def pod_template(work: Work, first_host: str, *, subdomain: str | None = None) -> dict[str, Any]:
    """Return the template; `first_host` is how node 0 is called, where the ranks meet."""
    volumes, mounts = pod_volumes(
        f"{work.name}-config",
        work.needs,
        work.claims,
        work.profile.nvme.path if work.profile.nvme else None,
    )
    spec: dict[str, Any] = {
        "restartPolicy": "Never",  # podFailurePolicy asks for it
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": work.needs.grace_seconds,
        "securityContext": pod_security(),
        "nodeSelector": node_selector(work.profile),
        "containers": [_container(work, first_host, mounts)],
        "volumes": volumes,
    }
    if subdomain is not None:
        spec["subdomain"] = subdomain
    for field, value in (
        ("affinity", affinity(work.profile, work.name, work.plan.nodes)),
        ("tolerations", tolerations(work.profile)),
    ):
        if value:
            spec[field] = value
    return {"metadata": {"labels": labels(work.name)}, "spec": spec}


def _container(work: Work, first_host: str, mounts: list[dict[str, Any]]) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": work.cluster.image,
        # Tags are versions, and images that a node was given by hand cannot be pulled: no `Always`,
        # no digest asked for (checkov CKV_K8S_15, CKV_K8S_43). `--image NAME@sha256:...` pins one.
        "imagePullPolicy": "IfNotPresent",
        "args": _arguments(work, first_host),  # of the image's entry point, `rankzero`
        "env": _environment(work),
        "resources": _resources(work.needs),
        "securityContext": container_security(),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    if work.cluster.internet:
        # As variables, which is all that wandb and mlflow read (checkov CKV_K8S_35).
        container["envFrom"] = [{"secretRef": {"name": TOKENS_SECRET, "optional": True}}]
    if work.is_multi_node:
        container["ports"] = [{"name": "rendezvous", "containerPort": RENDEZVOUS_PORT}]
    return container


def _arguments(work: Work, first_host: str) -> list[str]:
    arguments = [
        *("train", f"{CONFIG_FOLDER}/{CONFIG_FILE}"),
        *("--profile", work.profile_argument),
        *("--nodes", str(work.plan.nodes)),
    ]
    if work.is_multi_node:
        # Kubernetes itself puts the variable in; there is no shell.
        arguments += ["--node-rank", f"$({INDEX_VARIABLE})"]
        arguments += ["--rendezvous", f"{first_host}:{RENDEZVOUS_PORT}"]
    return arguments


def _environment(work: Work) -> list[dict[str, Any]]:
    plan = work.plan
    values = writable_environment()
    values |= nccl_environment(work.profile, plan.nodes, plan.processes_per_node)
    if not work.cluster.internet:
        values["HF_HUB_OFFLINE"] = "1"  # fails at once and says why, instead of waiting
    found: list[dict[str, Any]] = [
        {"name": name, "value": value} for name, value in sorted(values.items())
    ]
    if work.is_multi_node:
        path = f"metadata.annotations['{_INDEX_ANNOTATION}']"
        field = {"fieldRef": {"fieldPath": path}}
        found.append({"name": INDEX_VARIABLE, "valueFrom": field})
    return found


def _resources(needs: PodNeeds) -> dict[str, Any]:
    """Requests are limits: such pods are the last to be evicted, and threads fit the cores."""
    amounts = {
        "cpu": str(needs.cpus),
        "memory": gib(needs.memory_gib),
        "ephemeral-storage": gib(needs.ephemeral_gib),
    }
    if needs.gpus:
        amounts["nvidia.com/gpu"] = str(needs.gpus)
    return {"requests": amounts, "limits": dict(amounts)}


def container_security() -> dict[str, Any]:
    """Return what a container may do: nothing but compute and write to its volumes."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def pod_security() -> dict[str, Any]:
    """Return as whom a pod runs."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        # A volume with many checkpoints would take minutes to walk through at every start.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
