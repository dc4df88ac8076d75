"""A run as a Job; on several nodes an Indexed one, whose pods a headless Service names. PURE."""

from __future__ import annotations

from typing import Any

from launcher.kubernetes.manifests.failure_policy import backoff_limit, pod_failure_policy
from launcher.kubernetes.manifests.pod import CONTAINER, Work, pod_template
from launcher.kubernetes.names import labels

SECONDS_KEPT = 7 * 24 * 3600
"""How long a finished job stays to be looked at; its files are on a volume and stay longer."""


def job_spec(work: Work, template: dict[str, Any]) -> dict[str, Any]:
    """Return what a Job does, whether it stands alone or in a set."""
    nodes = work.plan.nodes
    return {
        "backoffLimit": backoff_limit(nodes),
        "completionMode": "Indexed" if nodes > 1 else "NonIndexed",
        "completions": nodes,
        "parallelism": nodes,
        "podFailurePolicy": pod_failure_policy(CONTAINER),
        # Not while the old pod still saves: two of the same rank would write one run.
        "podReplacementPolicy": "Failed",
        "template": template,
    }


def make_job(work: Work) -> dict[str, Any]:
    """Return the Job."""
    subdomain = work.name if work.is_multi_node else None
    template = pod_template(work, f"{work.name}-0.{work.name}", subdomain=subdomain)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": work.name, "labels": labels(work.name)},
        "spec": {**job_spec(work, template), "ttlSecondsAfterFinished": SECONDS_KEPT},
    }
