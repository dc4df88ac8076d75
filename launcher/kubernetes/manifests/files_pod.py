"""A pod that holds a run's volumes open while files are copied to them and from them. PURE."""

from __future__ import annotations

from typing import Any

from launcher.kubernetes.cluster import MOUNTS
from launcher.kubernetes.manifests.pod import Work, container_security, pod_security
from launcher.kubernetes.names import APPLICATION

CONTAINER = "files"
_SECONDS = 24 * 3600
_SMALL = {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"}


def make_files_pod(work: Work) -> dict[str, Any]:
    """Return the pod; the cache is not among its volumes.

    It lives for a day, for a ReadWriteOnce volume is at one machine at a time. It has no label of
    the run's: it is none of its pods.
    """
    claims = [claim for claim in work.claims if claim.role != "cache"]
    container = {
        "name": CONTAINER,
        "image": work.cluster.image,
        "imagePullPolicy": "IfNotPresent",
        # It serves nobody, so there is nothing to probe (checkov CKV_K8S_8, CKV_K8S_9). The kubelet
        # copies, so it needs no network, and k8s/base closes the namespace's (CKV2_K8S_6).
        "command": ["sleep", str(_SECONDS)],
        "resources": {"requests": dict(_SMALL), "limits": dict(_SMALL)},
        "securityContext": container_security(),
        "volumeMounts": [{"name": claim.role, "mountPath": MOUNTS[claim.role]} for claim in claims],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{work.name}-{CONTAINER}",
            "labels": {
                "app.kubernetes.io/name": f"{APPLICATION}-{CONTAINER}",
                "app.kubernetes.io/managed-by": APPLICATION,
            },
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "activeDeadlineSeconds": _SECONDS,
            "terminationGracePeriodSeconds": 1,  # `sleep` as PID 1 hears no SIGTERM
            "securityContext": pod_security(),
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "containers": [container],
            "volumes": [
                {"name": claim.role, "persistentVolumeClaim": {"claimName": claim.name}}
                for claim in claims
            ],
        },
    }
