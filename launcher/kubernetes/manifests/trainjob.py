"""A run as Kubeflow's TrainJob, and the runtime of the same name that it refers to. PURE.

The runtime is the run's own, in its namespace: what the plan says (volumes, memory, grace, what
happens after which exit code) is more than a TrainJob may patch into a runtime of the cluster's.
Its policy is the plain one, which sets no variables for torchrun: `rankzero train` starts that.
Source: kubeflow.org, Trainer, "ML Policy" and "Job Template", v1alpha1.
"""

from __future__ import annotations

from typing import Any

from launcher.kubernetes.manifests.jobset import jobset_spec
from launcher.kubernetes.manifests.pod import Work
from launcher.kubernetes.names import labels

API_VERSION = "trainer.kubeflow.org/v1alpha1"
# How the Trainer finds the job that trains.
_STEP = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}


def make_training_runtime(work: Work) -> dict[str, Any]:
    """Return the TrainingRuntime."""
    return {
        "apiVersion": API_VERSION,
        "kind": "TrainingRuntime",
        "metadata": {"name": work.name, "labels": labels(work.name)},
        "spec": {
            "mlPolicy": {"numNodes": work.plan.nodes},
            "template": {"spec": jobset_spec(work, {**labels(work.name), **_STEP})},
        },
    }


def make_trainjob(work: Work) -> dict[str, Any]:
    """Return the TrainJob."""
    return {
        "apiVersion": API_VERSION,
        "kind": "TrainJob",
        "metadata": {"name": work.name, "labels": labels(work.name)},
        "spec": {
            "runtimeRef": {
                "apiGroup": API_VERSION.partition("/")[0],
                "kind": "TrainingRuntime",
                "name": work.name,
            },
            "trainer": {"numNodes": work.plan.nodes},
        },
    }
