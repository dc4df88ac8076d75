"""What the API server answers instead of doing it, as an error that a user can act on. PURE."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from launcher.kubernetes.client.resources import RESOURCES
from trainer.errors import EnvironmentProblem

_MISSING_RIGHT = re.compile(
    r'cannot (?P<verb>\w+) resource "(?P<what>[^"]+)"(?: in API group "(?P<group>[^"]*)")?'
)
_TOO_MUCH = ("exceeded quota", "maximum ", "minimum ")
"""How ResourceQuota and LimitRange begin what they say."""


@dataclass(frozen=True)
class Answer:
    """An answer that is no success. Source: Kubernetes API conventions, "Response Status Kind"."""

    code: int
    reason: str
    message: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_missing(self) -> bool:
        return self.code == 404


class Refusal(EnvironmentProblem):
    """The API server refused one request."""

    def __init__(self, answer: Answer, kind: str, name: str, namespace: str) -> None:
        self.answer = answer
        what, rule, fix = _explain(answer, kind, f"{kind} {name}".strip(), namespace)
        super().__init__(what, rule=rule, fix=fix)

    def to_problem(self) -> str:
        """Return it as one of several problems of a list."""
        return self.what + (f"\n     fix: {self.fix}" if self.fix else "")


class Unreachable(EnvironmentProblem):
    """The API server does not answer, or has no time; later it may."""


def read_answer(code: int, body: str) -> Answer:
    """Read a Status; an answer that is none is taken as it is."""
    try:
        status = json.loads(body)
    except ValueError:
        status = None
    if not isinstance(status, dict) or status.get("kind") != "Status":
        return Answer(code, "", body.strip()[:500])
    details = status.get("details") or {}
    return Answer(code, str(status.get("reason") or ""), str(status.get("message")), details)


def _explain(answer: Answer, kind: str, what: str, namespace: str) -> tuple[str, str, str]:
    if answer.is_missing:
        return _missing(answer, kind, what, namespace)
    if answer.code == 403:
        return _forbidden(answer, what, namespace)
    causes = answer.details.get("causes") or []
    if answer.code in (400, 422) and causes:
        fields = "; ".join(f"{each.get('field', '?')}: {each.get('message')}" for each in causes)
        return f"{what}: {fields}", "what the cluster accepts", _FIX_VERSION
    if "strict decoding error" in answer.message:
        return f"{what}: {answer.message}", "every field is one the cluster knows", _FIX_VERSION
    rule = f"the API server answers {answer.code} {answer.reason}".rstrip()
    return f"{what}: {answer.message}", rule, ""


_FIX_VERSION = (
    "`kubectl version` says what the server is: a Job needs Kubernetes 1.29; a JobSet or TrainJob "
    "the version of its controller that docs/kubernetes.md names"
)


def _missing(answer: Answer, kind: str, what: str, namespace: str) -> tuple[str, str, str]:
    if answer.details.get("kind") == "namespaces":
        # k8s/base makes the namespace of the documentation; others are the administrator's.
        make = f"kubectl create namespace {namespace}"
        if namespace == "rankzero":
            make = "kubectl apply -k k8s/base"
        return (
            f"there is no namespace {namespace}",
            "a run's objects live in one namespace",
            f"{make}, or name another with --namespace",
        )
    if not answer.reason or not answer.details.get("name"):
        resource = RESOURCES[kind]
        controller = resource.controller or "Kubernetes 1.29 or newer"
        return (
            f"this cluster knows no {kind} ({resource.group_version})",
            f"a {kind} needs {controller}",
            "have it installed, or take --kind job" if resource.controller else "use such a one",
        )
    return f"{what} is not there", f"the API server answers: {answer.message}", ""


def _forbidden(answer: Answer, what: str, namespace: str) -> tuple[str, str, str]:
    right = _MISSING_RIGHT.search(answer.message)
    if right:
        resource = right["what"] + (f".{right['group']}" if right["group"] else "")
        return (
            f"{what}: you may not {right['verb']} {resource} in namespace {namespace}",
            "the cluster's roles say who may do what",
            f"ask for the right; `kubectl auth can-i {right['verb']} {resource} "
            f"--namespace {namespace}` tests it",
        )
    if any(words in answer.message for words in _TOO_MUCH):
        return (
            f"{what}: {answer.message}",
            "a quota or limit of the namespace holds for everybody in it",
            f"end what is no longer needed, ask for more, or see `kubectl describe quota,limits "
            f"--namespace {namespace}`",
        )
    return f"{what}: {answer.message}", "a rule of the cluster forbids it", ""
