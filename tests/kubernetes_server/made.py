"""Answers that no server of ours could be recorded giving, written by hand from the API reference.

A file tells a run in moments: the objects as they are at one look at it. Names, labels and uids
are filled in. Nothing is ever written: only commands that read can be tested so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.kubernetes_server.exchange import Exchange, Request
from tests.kubernetes_server.stage import RECORDINGS

MADE = RECORDINGS / "made"
_CREATED = "2026-01-01T00:00:00Z"
_GROUPS = {
    "Job": "batch/v1",
    "TrainJob": "trainer.kubeflow.org/v1alpha1",
    "JobSet": "jobset.x-k8s.io/v1alpha2",
}
_LOG = {"container": "node", "timestamps": "true"}


def read_made(path: Path, name: str, namespace: str) -> list[Exchange]:
    """Return the exchanges of commands that look at the run `name`."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    told = _Telling(name, f"namespaces/{namespace}", content["kind"])
    moments = content["moments"]
    first = list(told.moment(moments[0]))  # the command's own look, before it follows
    others = [told.get(f"apis/{group}", kind, None) for kind, group in _GROUPS.items()]
    absent = [each for each in others if each.request.path != told.workload_path]
    return [*absent, *first, *(each for moment in moments for each in told.moment(moment))]


class _Telling:
    def __init__(self, name: str, scope: str, kind: str) -> None:
        self._name, self._scope, self._kind = name, scope, kind
        labels = {"app.kubernetes.io/name": "rankzero", "app.kubernetes.io/instance": name}
        self._labels = {**labels, "app.kubernetes.io/managed-by": "rankzero"}
        self._selector = {"labelSelector": ",".join(f"{k}={v}" for k, v in labels.items())}
        self.workload_path = f"/apis/{_GROUPS[kind]}/{scope}/{kind.lower()}s/{name}"

    def get(self, api: str, kind: str, value: Any) -> Exchange:
        path = f"/{api}/{self._scope}/{kind.lower()}s/{self._name}"
        missing = {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
        return _answer(path, {}, missing if value is None else value, 404 if value is None else 200)

    def moment(self, moment: Mapping[str, Any]) -> Iterator[Exchange]:
        workload = self._filled(
            self._kind, {"metadata": {"name": self._name}, **moment["workload"]}
        )
        jobs = [self._filled("Job", each) for each in moment.get("jobs", [])]
        pods = [self._filled("Pod", each) for each in moment.get("pods", [])]
        yield self.get(f"apis/{_GROUPS[self._kind]}", self._kind, workload)
        yield self._list("apis/batch/v1", "jobs", self._selector, jobs)
        yield self._list("api/v1", "pods", self._selector, pods)
        for each in (workload, *jobs, *pods):
            uid = each["metadata"]["uid"]
            events = moment.get("events", {}).get(each["metadata"]["name"], [])
            query = {"fieldSelector": f"involvedObject.uid={uid}"}
            yield self._list("api/v1", "events", query, events)
        queued = {"labelSelector": f"kueue.x-k8s.io/job-uid={workload['metadata']['uid']}"}
        waits = moment.get("queue", [])
        yield self._list("apis/kueue.x-k8s.io/v1beta1", "workloads", queued, waits)
        for pod, lines in moment.get("logs", {}).items():
            for query in (_LOG, {**_LOG, "tailLines": "5"}):
                path = f"/api/v1/{self._scope}/pods/{pod}/log"
                yield _answer(path, query, "".join(f"{line}\n" for line in lines))

    def _list(self, api: str, plural: str, query: dict[str, str], items: list[Any]) -> Exchange:
        return _answer(f"/{api}/{self._scope}/{plural}", query, {"kind": "List", "items": items})

    def _filled(self, kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
        metadata = {**value["metadata"]}
        own = {
            "uid": f"uid-of-{kind.lower()}-{metadata['name']}",
            "creationTimestamp": _CREATED,
        }
        metadata = {**own, **metadata, "labels": {**self._labels, **metadata.get("labels", {})}}
        return {"kind": kind, "spec": {}, **value, "metadata": metadata}


def _answer(path: str, query: dict[str, str], value: Any, status: int = 200) -> Exchange:
    return Exchange(0, Request("GET", path, dict(sorted(query.items()))), status, value)
