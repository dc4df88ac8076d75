"""Where the API server keeps each kind of object that a run has, or is looked up for. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
"""One object of the API's, as JSON has it."""

WORKLOAD_KINDS = {"job": "Job", "trainjob": "TrainJob", "jobset": "JobSet"}
"""What carries a run out, by the word for it. A TrainJob makes a JobSet, which makes a Job."""


@dataclass(frozen=True)
class Resource:
    """Source: each API's reference: group, version, plural."""

    group_version: str
    plural: str
    controller: str = ""
    """What serves this kind, when it is no part of Kubernetes itself."""


RESOURCES = {
    "ConfigMap": Resource("v1", "configmaps"),
    "Event": Resource("v1", "events"),
    "PersistentVolumeClaim": Resource("v1", "persistentvolumeclaims"),
    "Pod": Resource("v1", "pods"),
    "Service": Resource("v1", "services"),
    "Job": Resource("batch/v1", "jobs"),
    "NetworkPolicy": Resource("networking.k8s.io/v1", "networkpolicies"),
    "JobSet": Resource("jobset.x-k8s.io/v1alpha2", "jobsets", "JobSet"),
    "TrainJob": Resource("trainer.kubeflow.org/v1alpha1", "trainjobs", "Kubeflow Trainer"),
    "TrainingRuntime": Resource(
        "trainer.kubeflow.org/v1alpha1", "trainingruntimes", "Kubeflow Trainer"
    ),
    "Workload": Resource("kueue.x-k8s.io/v1beta1", "workloads", "Kueue"),
}


def path_of(kind: str, namespace: str, name: str = "", part: str = "") -> str:
    """Return the path of a collection, of one object, or of a part of it such as `log`."""
    resource = RESOURCES[kind]
    prefix = "apis" if "/" in resource.group_version else "api"
    steps = [prefix, resource.group_version, "namespaces", namespace, resource.plural, name, part]
    return "/" + "/".join(step for step in steps if step)


def name_of(value: Object) -> str:
    return str(value["metadata"]["name"])


def uid_of(value: Object) -> str:
    return str(value["metadata"].get("uid", ""))


def is_being_deleted(value: Object) -> bool:
    return bool(value["metadata"].get("deletionTimestamp"))


def true_condition(value: Object, *types: str) -> Object | None:
    """Return the first condition of these types that holds."""
    for condition in (value.get("status") or {}).get("conditions") or []:
        if condition["type"] in types and condition["status"] == "True":
            return dict(condition)
    return None
