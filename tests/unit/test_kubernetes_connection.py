"""The way to the API server: which kubeconfig, what is sent, and what its answers mean."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import urllib3

from launcher.kubernetes.client.api import ApiServer
from launcher.kubernetes.client.connection import connect
from launcher.kubernetes.client.refusal import Refusal, Unreachable
from trainer.errors import ConfigError, EnvironmentProblem

pytest.importorskip("kubernetes")
SERVER = "https://cluster.test:6443"


@pytest.fixture(autouse=True)
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a kubeconfig of two contexts and let it be the user's."""
    contexts = [
        {"name": "red", "context": {"cluster": "one", "user": "me", "namespace": "team"}},
        {"name": "blue", "context": {"cluster": "one", "user": "me"}},
    ]
    values = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "red",
        "clusters": [{"name": "one", "cluster": {"server": SERVER}}],
        "users": [{"name": "me", "user": {"token": "secret"}}],
        "contexts": contexts,
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(values), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return path


class Server:
    """Answers every request alike, and keeps what was asked."""

    def __init__(self, status: int = 200, body: Any = None) -> None:
        self.status, self.body = status, body
        self.asked: list[tuple[str, str, Any, dict[str, str]]] = []
        self.error: Exception | None = None

    def request(self, _: object, method: str, url: str, **given: Any) -> urllib3.HTTPResponse:
        body = json.loads(given["body"]) if given.get("body") else None
        self.asked.append((method, url.removeprefix(SERVER), body, dict(given["headers"])))
        if self.error is not None:
            raise self.error
        text = self.body if isinstance(self.body, str) else json.dumps(self.body or {})
        return urllib3.HTTPResponse(body=text.encode(), status=self.status, reason="said so")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()

    def request(pool: object, method: str, url: str, **given: Any) -> urllib3.HTTPResponse:
        return made.request(pool, method, url, **given)

    monkeypatch.setattr(urllib3.PoolManager, "request", request)
    return made


def test_namespace_and_context() -> None:
    assert connect().namespace == "team"
    assert connect("blue").namespace == "default"
    assert connect("blue", "other").options == "--namespace other --context blue"
    with pytest.raises(ConfigError, match="--context green") as caught:
        connect("green")
    assert "blue, red" in caught.value.rule


@pytest.mark.parametrize("text", ["x: [", "just text", "{}"])
def test_a_broken_kubeconfig_is_one_message(kubeconfig: Path, text: str) -> None:
    kubeconfig.write_text(text, encoding="utf-8")
    with pytest.raises(EnvironmentProblem, match="kubeconfig cannot be used"):
        connect()


def test_without_a_kubeconfig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(EnvironmentProblem, match="no kubeconfig"):
        connect()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(EnvironmentProblem) as caught:
        connect()
    assert caught.value.fix == "pip install 'rankzero[k8s]'"


def test_objects_are_applied_and_tried_by_a_manager_of_our_own(server: Server) -> None:
    value = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}}
    api = ApiServer(connect())
    api.apply(value)
    method, url, body, headers = server.asked.pop()
    assert (method, body) == ("PATCH", value)
    assert url == "/api/v1/namespaces/team/services/x?fieldManager=rankzero&force=true"
    assert headers["Content-Type"] == "application/apply-patch+yaml"
    assert headers["authorization"] == "Bearer secret"
    api.create({**value, "kind": "Job"}, is_dry_run=True)
    method, url, *_ = server.asked.pop()
    assert method == "POST"
    assert url.startswith("/apis/batch/v1/namespaces/team/jobs?")
    assert "dryRun=All" in url
    assert "fieldValidation=Strict" in url


def test_reads_ask_for_no_more_than_they_need(server: Server) -> None:
    server.body = {"items": [{"metadata": {"name": "b"}}, {"metadata": {"name": "a"}}]}
    api = ApiServer(connect())
    found = api.list("Pod", labels={"app": "x", "part": "y"})
    # Of a list's items the server says no kind.
    assert [(each["kind"], each["metadata"]["name"]) for each in found] == [
        ("Pod", "a"),
        ("Pod", "b"),
    ]
    assert server.asked.pop()[1] == "/api/v1/namespaces/team/pods?labelSelector=app%3Dx%2Cpart%3Dy"
    server.body = "2026-01-01T10:00:00Z one\n"
    assert api.read_log("a", "node", since="2026-01-01T10:00:00Z") == server.body
    url = server.asked.pop()[1]
    assert url.startswith("/api/v1/namespaces/team/pods/a/log?container=node&timestamps=true")
    assert "sinceTime=2026-01-01T10%3A00%3A00Z" in url
    assert server.asked == []


def test_a_job_is_deleted_with_what_it_made(server: Server) -> None:
    ApiServer(connect()).delete("Job", "x")
    method, _, body, _ = server.asked.pop()
    assert (method, body["propagationPolicy"]) == ("DELETE", "Foreground")


def test_what_is_not_there(server: Server) -> None:
    api = ApiServer(connect())
    server.status, server.body = 404, {"kind": "Status", "reason": "NotFound", "message": "no"}
    assert api.get("Job", "x") is None
    api.delete("Job", "x")
    with pytest.raises(Refusal):
        api.list("JobSet")


@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        (401, EnvironmentProblem, "does not accept your credentials"),
        (403, Refusal, "out of bounds"),
        (500, Refusal, "out of bounds"),
        (429, Unreachable, "it answers 429"),
        (503, Unreachable, "it answers 503"),
    ],
)
def test_answers_that_are_no_success(
    server: Server, status: int, error: type[Exception], told: str
) -> None:
    server.status = status
    server.body = {"kind": "Status", "message": "out of bounds", "reason": "Whatever"}
    with pytest.raises(error, match=told) as caught:
        ApiServer(connect()).get("Job", "x")
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("raised", "error", "told"),
    [
        (
            urllib3.exceptions.SSLError("certificate verify failed: self-signed"),
            EnvironmentProblem,
            "certificate of https://cluster.test:6443 is not to be trusted",
        ),
        (
            urllib3.exceptions.ProtocolError("aborted", ConnectionResetError("reset by peer")),
            Unreachable,
            "cannot be reached: reset by peer",
        ),
        (TimeoutError("timed out"), Unreachable, "cannot be reached: timed out"),
    ],
)
def test_a_connection_that_does_not_come_about(
    server: Server, raised: Exception, error: type[Exception], told: str
) -> None:
    server.error = raised
    with pytest.raises(error, match=told) as caught:
        ApiServer(connect()).get("Job", "x")
    assert type(caught.value) is error
