"""A run as a JobSet of one Job; the set makes the headless Service itself. PURE.

Source: jobset.sigs.k8s.io, v1alpha2.
"""

from __future__ import annotations

from typing import Any

from launcher.kubernetes.manifests.job import SECONDS_KEPT, job_spec
from launcher.kubernetes.manifests.pod import Work, pod_template
from launcher.kubernetes.names import labels

REPLICATED_JOB = "node"


def jobset_spec(work: Work, job_labels: dict[str, str]) -> dict[str, Any]:
    """Return what the set does; pods are called NAME-node-0-INDEX.NAME."""
    template = pod_template(work, f"{work.name}-{REPLICATED_JOB}-0-0.{work.name}")
    job = {**job_spec(work, template), "completionMode": "Indexed"}
    return {
        # The Job itself counts failures, by exit code; when it gives up, so does the set.
        "failurePolicy": {"maxRestarts": 0},
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "replicatedJobs": [
            {
                "name": REPLICATED_JOB,
                "replicas": 1,
                "template": {"metadata": {"labels": job_labels}, "spec": job},
            }
        ],
        "successPolicy": {"operator": "All"},
    }


def make_jobset(work: Work) -> dict[str, Any]:
    """Return the JobSet."""
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": work.name, "labels": labels(work.name)},
        "spec": {
            **jobset_spec(work, labels(work.name)),
            "ttlSecondsAfterFinished": SECONDS_KEPT,
        },
    }
