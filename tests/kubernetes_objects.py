"""Objects as a cluster returns them, and a cluster that returns what it was given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from launcher.kubernetes.client.refusal import Answer, Refusal, Unreachable
from launcher.kubernetes.names import labels

Object = dict[str, Any]
NAME = "rankzero-one"
JOB_UID = "uid-job"


def make_job(
    *, condition: tuple[str, str, str] | None = None, suspend: bool = False, **metadata: Any
) -> Object:
    """Return a Job; `condition`: type, reason, message of what ended it."""
    conditions = []
    if condition is not None:
        kind, reason, message = condition
        conditions = [{"type": kind, "status": "True", "reason": reason, "message": message}]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": NAME,
            "uid": JOB_UID,
            "labels": labels(NAME),
            "creationTimestamp": "2026-01-01T10:00:00Z",
            **metadata,
        },
        "spec": {"suspend": suspend},
        "status": {"conditions": conditions},
    }


def make_pod(
    state: Mapping[str, Any] | None = None,
    *,
    index: int = 0,
    attempt: int = 1,
    machine: str | None = "gpu-a",
    conditions: tuple[Mapping[str, Any], ...] = (),
    status: Mapping[str, Any] | None = None,
    **metadata: Any,
) -> Object:
    """Return a pod; `state`: its container's, as `{"running": {...}}`."""
    containers = [] if state is None else [{"name": "node", "state": dict(state)}]
    name = f"{NAME}-{index}-{attempt}"
    return {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "labels": labels(NAME),
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
            "creationTimestamp": f"2026-01-01T10:0{attempt}:00Z",
            **metadata,
        },
        "spec": {"nodeName": machine, "volumes": []} if machine else {"volumes": []},
        "status": {
            "phase": "Pending",
            "conditions": list(conditions),
            "containerStatuses": containers,
            **(status or {}),
        },
    }


def running() -> Object:
    return {"running": {"startedAt": "2026-01-01T10:05:00Z"}}


def waiting(reason: str, message: str = "") -> Object:
    return {"waiting": {"reason": reason, "message": message}}


def terminated(
    code: int, message: str = "", *, reason: str = "Error", at: str = "2026-01-01T10:06:00Z"
) -> Object:
    return {
        "terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": at}
    }


def last_word(code: int, error: str, message: str, remedy: str = "") -> str:
    """Return what trainer.status writes for Kubernetes to show."""
    record = {
        "state": "failed",
        "exit_code": code,
        "rank": 0,
        "error": error,
        "message": message,
        "remedy": remedy,
        "ended": 1.0,
    }
    return json.dumps(record)


def unscheduled(message: str) -> Object:
    return {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
    }


def event(reason: str, message: str, at: str = "2026-01-01T10:01:00Z") -> Object:
    return {
        "metadata": {"name": f"{reason}-{at}"},
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
    }


def refusal(
    code: int, reason: str, message: str, kind: str = "Job", details: Object | None = None
) -> Refusal:
    return Refusal(Answer(code, reason, message, details or {}), kind, NAME, "team")


class FakeApi:
    """A cluster of objects in memory. What happens between two looks is the test's to say."""

    namespace = "team"

    def __init__(self, *objects: Object) -> None:
        self.objects = {(each["kind"], each["metadata"]["name"]): each for each in objects}
        self.events: dict[str, list[Object]] = {}
        self.logs: dict[str, list[str]] = {}
        self.logs_read: list[str] = []
        self.refused: dict[tuple[str, str], Refusal] = {}
        """By verb and kind."""
        self.written: list[tuple[str, str, str]] = []
        self.dry: list[tuple[str, str]] = []
        self.before_get: Callable[[], None] = lambda: None
        self.is_lost = False

    def put(self, value: Object) -> None:
        self.objects[value["kind"], value["metadata"]["name"]] = value

    def remove(self, kind: str, name: str) -> None:
        self.objects.pop((kind, name), None)

    def get(self, kind: str, name: str) -> Object | None:
        self.before_get()
        self._check("get", kind)
        return self.objects.get((kind, name))

    def list(
        self, kind: str, *, labels: Mapping[str, str] | None = None, fields: str = ""
    ) -> list[Object]:
        self._check("list", kind)
        if kind == "Event":
            return self.events.get(fields.partition("=")[2], [])
        return [
            each
            for (own, _), each in sorted(self.objects.items())
            if own == kind
            and (labels or {}).items() <= (each["metadata"].get("labels") or {}).items()
        ]

    def create(self, value: Object, *, is_dry_run: bool = False) -> Object:
        return self._write("create", value, is_dry_run)

    def apply(self, value: Object, *, is_dry_run: bool = False) -> Object:
        return self._write("apply", value, is_dry_run)

    def delete(self, kind: str, name: str) -> None:
        self._check("delete", kind)
        self.written.append(("delete", kind, name))
        self.remove(kind, name)

    def read_log(
        self, pod: str, container: str, *, since: str | None = None, last_lines: int | None = None
    ) -> str:
        self._check("log", "Pod")
        self.logs_read.append(pod)
        lines = [
            line for line in self.logs.get(pod, []) if since is None or line[:19] >= since[:19]
        ]
        kept = lines[-last_lines:] if last_lines else lines
        return "".join(f"{line}\n" for line in kept)

    def _write(self, verb: str, value: Object, is_dry_run: bool) -> Object:
        self._check(verb, value["kind"])
        if is_dry_run:
            self.dry.append((verb, value["kind"]))
        else:
            self.written.append((verb, value["kind"], value["metadata"]["name"]))
            self.put(value)
        return value

    def _check(self, verb: str, kind: str) -> None:
        if self.is_lost:
            raise Unreachable("https://cluster cannot be reached: refused")
        if (verb, kind) in self.refused:
            raise self.refused[verb, kind]
