"""One pod of a fake node: a thread that tells the API server what its container does."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from tests.kubernetes_server.access import Access, Refused
from tests.kubernetes_server.acts import Step


def now() -> str:
    """Return the time as the API writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class FakePod:
    """A thread does its steps; when its pod is deleted, the steps for that, and then lets it go."""

    def __init__(
        self, access: Access, pod: dict[str, Any], steps: Sequence[Step], last: Sequence[Step]
    ) -> None:
        metadata = pod["metadata"]
        self.namespace, self.pod_name = metadata["namespace"], metadata["name"]
        self._access, self._uid, self._node = access, metadata["uid"], pod["spec"]["nodeName"]
        self._container = pod["spec"]["containers"][0]
        self._steps, self._last = steps, last
        self._started: str | None = None
        self._begun = now()
        self.lines: list[tuple[datetime, str]] = []
        """What it has written so far, and when."""
        self.said = threading.Condition()
        self.is_over = False
        self._termination = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def terminate(self) -> None:
        """Take the pod's deletion in."""
        self._termination.set()

    def _run(self) -> None:
        try:
            self._show("Pending", {"waiting": {"reason": "ContainerCreating"}})
            for step in self._steps:
                if self._termination.wait(step.pause):
                    break
                self._do(step)
            self._termination.wait()
            for step in () if self.is_over or self._started is None else self._last:
                threading.Event().wait(step.pause)
                self._do(step)
            self._let_go()
        except Refused as refused:
            if refused.status != 404:  # deleted at once
                raise
        finally:
            self._end()

    def _do(self, step: Step) -> None:
        if step.waiting is not None:
            self._show("Pending", {"waiting": {"reason": step.waiting, "message": step.message}})
            self._tell_event(step)
        if step.is_start:
            self._started = now()
            self._show("Running", {"running": {"startedAt": self._started}})
        with self.said:
            self.lines += [(datetime.now(timezone.utc), line) for line in step.log]
            self.said.notify_all()
        if step.exit_code is not None:
            self._end()
            code = step.exit_code
            terminated = {
                "exitCode": code,
                "reason": step.reason or ("Error" if code else "Completed"),
                "message": step.message,
                "startedAt": self._started,
                "finishedAt": now(),
            }
            self._show("Failed" if code else "Succeeded", {"terminated": terminated})

    def _end(self) -> None:
        with self.said:
            self.is_over = True
            self.said.notify_all()

    def _path(self, kind: str, name: str = "") -> str:
        return f"/api/v1/namespaces/{self.namespace}/{kind}{name and '/' + name}"

    def _show(self, phase: str, state: dict[str, Any]) -> None:
        is_ready = "True" if "running" in state else "False"
        finished = {"reason": "PodCompleted"} if phase == "Succeeded" else {}
        conditions = [
            {"type": "Initialized", "status": "True", "lastTransitionTime": self._begun},
            {"type": "Ready", "status": is_ready, "lastTransitionTime": now(), **finished},
            {"type": "ContainersReady", "status": is_ready, "lastTransitionTime": now()},
        ]
        container = {
            "name": self._container["name"],
            "image": self._container["image"],
            "imageID": "",
            "ready": "running" in state,
            "started": "running" in state,
            "restartCount": 0,
            "state": {**dict.fromkeys(("waiting", "running", "terminated")), **state},
        }
        status = {
            "phase": phase,
            "conditions": conditions,
            "containerStatuses": [container],
            "hostIP": "127.0.0.1",
            "startTime": self._begun,
        }
        self._access.patch(f"{self._path('pods', self.pod_name)}/status", {"status": status})

    def _let_go(self) -> None:
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self._uid}}
        self._access.request("DELETE", self._path("pods", self.pod_name), options)

    def _tell_event(self, step: Step) -> None:
        reason = "BackOff" if step.waiting == "ImagePullBackOff" else "Failed"
        self._access.request(
            "POST",
            self._path("events"),
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"generateName": f"{self.pod_name}.", "namespace": self.namespace},
                "involvedObject": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": self.pod_name,
                    "namespace": self.namespace,
                    "uid": self._uid,
                },
                "type": "Normal" if step.waiting == "ContainerCreating" else "Warning",
                "reason": reason,
                "message": step.message,
                "source": {"component": "kubelet", "host": self._node},
                "firstTimestamp": now(),
                "lastTimestamp": now(),
                "count": 1,
            },
        )
