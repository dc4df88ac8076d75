"""Two nodes that are not there: their pods do what a scenario says, and their logs can be read.

Stands in for the kubelet of a real control plane: registers nodes as NVIDIA's GPU feature
discovery would label them, gives claims a volume, moves the pods that the real scheduler bound
through their phases and serves their logs where the API server asks a kubelet for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.kubernetes_server.access import Access, Refused
from tests.kubernetes_server.acts import Scenario
from tests.kubernetes_server.fake_pod import FakePod, now
from tests.kubernetes_server.kubelet_logs import LogServer

NODES = ("gpu-node-1", "gpu-node-2")
PROVISIONER = "rankzero.test/volumes"
LOOK_SECONDS = 0.2
HEARTBEAT_SECONDS = 8
_LABELS = {
    "kubernetes.io/os": "linux",
    "kubernetes.io/arch": "amd64",
    "topology.kubernetes.io/zone": "zone-1",
    "nvidia.com/gpu.present": "true",
    "nvidia.com/gpu.count": "1",
    "nvidia.com/gpu.memory": "81559",
    "nvidia.com/gpu.compute.major": "8",
    "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
}


class FakeNodes:
    """The nodes, while they are up."""

    def __init__(self, access: Access, namespace: str, scenario: Scenario, logs: LogServer) -> None:
        self._access, self._scenario, self._logs = access, scenario, logs
        self._namespace = namespace
        self._pods: dict[str, FakePod] = {}
        self._attempts: dict[tuple[str, ...], int] = {}
        self._gpus = scenario.gpus
        self._stop = threading.Event()
        self.error: Exception | None = None

    def register(self) -> None:
        """Make the nodes and the storage class known; a node of that name is made anew."""
        for name in NODES:
            _quietly(self._access, "DELETE", f"/api/v1/nodes/{name}")
            self._access.request("POST", "/api/v1/nodes", _node(name))
            self._beat(name)
        _quietly(self._access, "POST", "/apis/storage.k8s.io/v1/storageclasses", _STORAGE_CLASS)

    def unregister(self) -> None:
        for name in NODES:
            _quietly(self._access, "DELETE", f"/api/v1/nodes/{name}")

    def run(self) -> None:
        """Look after nodes, claims and pods until `stop`; an error ends it, and is kept."""
        try:
            self._run()
        except Exception as error:  # noqa: BLE001  # raised again by who started this thread
            self.error = error

    def _run(self) -> None:
        begun = beaten = time.monotonic()
        gpus_at = self._scenario.gpus_after
        while not self._stop.wait(LOOK_SECONDS):
            is_late = gpus_at is not None and time.monotonic() - begun > gpus_at
            if is_late or time.monotonic() - beaten > HEARTBEAT_SECONDS:
                gpus_at, self._gpus = (None, 1) if is_late else (gpus_at, self._gpus)
                beaten = time.monotonic()
                for name in NODES:
                    self._beat(name)
            if self._scenario.has_volumes:
                self._provision()
            self._look_at_pods()

    def stop(self) -> None:
        self._stop.set()

    def _beat(self, name: str) -> None:
        self._access.patch(
            f"/api/v1/nodes/{name}/status", _node_status(self._logs.port, self._gpus)
        )

    def _look_at_pods(self) -> None:
        for pod in self._list("pods"):
            uid = pod["metadata"]["uid"]
            if pod["spec"].get("nodeName") not in NODES:
                continue
            if uid not in self._pods:
                self._pods[uid] = self._begin(pod)
            if pod["metadata"].get("deletionTimestamp"):
                self._pods[uid].terminate()

    def _list(self, kind: str) -> list[dict[str, Any]]:
        found = self._access.request("GET", f"/api/v1/namespaces/{self._namespace}/{kind}")
        return list(found["items"])

    def _begin(self, pod: dict[str, Any]) -> FakePod:
        metadata = pod["metadata"]
        index = metadata.get("annotations", {}).get("batch.kubernetes.io/job-completion-index", "")
        key = (metadata["labels"]["app.kubernetes.io/instance"], index)
        attempt = self._attempts.get(key, 0)
        self._attempts[key] = attempt + 1
        attempts = self._scenario.attempts
        steps = attempts[min(attempt, len(attempts) - 1)]
        begun = FakePod(self._access, pod, steps, self._scenario.on_termination)
        self._logs.add(begun)
        begun.start()
        return begun

    def _provision(self) -> None:
        for claim in self._list("persistentvolumeclaims"):
            annotations = claim["metadata"].get("annotations", {})
            asked = [value for key, value in annotations.items() if "storage-provisioner" in key]
            if claim["status"]["phase"] == "Pending" and PROVISIONER in asked:
                _quietly(self._access, "POST", "/api/v1/persistentvolumes", _volume(claim))


@contextmanager
def acting_nodes(access: Access, namespace: str, scenario: Scenario) -> Iterator[None]:
    """Have the nodes up inside the block, for one namespace."""
    with LogServer() as logs:
        nodes = FakeNodes(access, namespace, scenario, logs)
        nodes.register()
        thread = threading.Thread(target=nodes.run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            nodes.stop()
            thread.join()
            nodes.unregister()
            if nodes.error is not None:
                raise nodes.error


def _quietly(access: Access, method: str, path: str, body: Any = None) -> None:
    """Send what may have been done already."""
    try:
        access.request(method, path, body)
    except Refused as refused:
        if refused.status not in (404, 409):
            raise


def _node(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {**_LABELS, "kubernetes.io/hostname": name}},
        "spec": {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]},
    }


def _node_status(port: int, gpus: int) -> dict[str, Any]:
    amounts = {
        "cpu": "64",
        "memory": "512Gi",
        "ephemeral-storage": "2Ti",
        "pods": "110",
        "nvidia.com/gpu": str(gpus),
    }
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "message": "kubelet is posting ready status",
        "lastHeartbeatTime": now(),
    }
    return {
        "status": {
            "capacity": amounts,
            "allocatable": amounts,
            "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        }
    }


_STORAGE_CLASS = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {
        "name": "test",
        "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
    },
    "provisioner": PROVISIONER,
}


def _volume(claim: dict[str, Any]) -> dict[str, Any]:
    metadata = claim["metadata"]
    reference = {key: metadata[key] for key in ("name", "namespace", "uid")}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"pvc-{metadata['uid']}"},
        "spec": {
            "capacity": claim["spec"]["resources"]["requests"],
            "accessModes": claim["spec"]["accessModes"],
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **reference},
            "hostPath": {"path": f"/nowhere/{metadata['uid']}"},
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": claim["spec"]["storageClassName"],
        },
    }
