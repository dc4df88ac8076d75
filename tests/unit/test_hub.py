"""A push sends the folder's bytes in one commit, or says what to do and changes nothing."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from pytest_socket import _remove_restrictions, disable_socket, socket_allow_hosts

from tests.unit.test_merge import make_adapter
from trainer.config import Config
from trainer.errors import ConfigError, EnvironmentProblem, RankZeroError
from trainer.hub import check_push, push_folder
from trainer.publication import publish_run
from trainer.run_directory import RunDirectory

TOKEN = "hf_secret"
CARD = "---\nlibrary_name: transformers\n---\n# A model\n"


class FakeHub(ThreadingHTTPServer):
    """The routes of the Hub that a push takes; `failures` maps a route to a status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.repos: dict[str, bool] = {}  # private or not
        self.commits: list[str] = []
        self.failures: dict[str, int] = {}
        self.requests: list[str] = []
        self.role = "write"
        self.url = f"http://127.0.0.1:{self.server_port}"

    def reply(self, route: str, body: bytes) -> tuple[int, Any]:
        self.requests.append(route)
        for part, status in self.failures.items():
            if part in route:
                return status, {"error": "not today", "errors": [{"message": "bad metadata"}]}
        answers = {
            "/api/whoami-v2": self._whoami,
            "/api/validate-yaml": lambda _: {"warnings": [], "errors": []},
            "/api/repos/create": self._create,
            f"{route.partition('/preupload/')[0]}/preupload/main": self._preupload,
            f"{route.partition('/commit/')[0]}/commit/main": self._commit,
        }
        if route in answers:
            return 200, answers[route](body)
        repo = route.removeprefix("/api/models/")
        if repo not in self.repos:
            return 404, {}
        siblings = [{"rfilename": name} for name in self.files]
        return 200, {"id": repo, "private": self.repos[repo], "siblings": siblings}

    def _whoami(self, _: bytes) -> Any:
        account = {"type": "user", "name": "me", "orgs": [{"name": "team"}]}
        return {**account, "auth": {"accessToken": {"role": self.role}}}

    def _create(self, body: bytes) -> Any:
        asked = json.loads(body)
        repo = f"{asked['organization'] or 'me'}/{asked['name']}"
        self.repos.setdefault(repo, asked.get("visibility") == "private")
        return {"url": f"{self.url}/{repo}"}

    def _preupload(self, body: bytes) -> Any:
        names = [file["path"] for file in json.loads(body)["files"]]
        return {
            "files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
        }

    def _commit(self, body: bytes) -> Any:
        header, *files = [json.loads(line)["value"] for line in body.splitlines()]
        self.commits.append(header["summary"])
        self.files |= {file["path"]: base64.b64decode(file["content"]) for file in files}
        oid = "0" * 40
        return {"commitOid": oid, "commitUrl": f"{self.url}/me/m/commit/{oid}"}


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        route = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        status, answer = self.server.reply(route, body) if is_known else (401, {})
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        data = json.dumps(answer).encode()
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    _remove_restrictions()
    socket_allow_hosts(["127.0.0.1"])
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
    _remove_restrictions()
    disable_socket(allow_unix_socket=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "merged"
    (folder / "more").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 300)
    (folder / "more" / "empty.txt").write_bytes(b"")
    (folder / ".hidden").write_text("mine")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("repo", ["team/model", "model"])
def test_the_bytes_arrive_in_one_commit(hub: FakeHub, model: Path, repo: str) -> None:
    check_push(repo, private=True)
    full = repo if "/" in repo else f"me/{repo}"
    assert push_folder(model, repo, private=True) == f"{hub.url}/{full}"
    expected = contents(model)
    del expected[".hidden"]
    assert hub.files == expected
    assert hub.repos == {full: True}
    assert hub.commits == ["Upload the model"]
    push_folder(model, full)  # once more is no error
    assert hub.files == expected


@pytest.mark.parametrize("repo", ["", "a/b/c", "/tmp/model", "me/a model", "me/a--b", "me/x.git"])
def test_an_impossible_id_is_said_at_once(hub: FakeHub, repo: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a repository"):
        check_push(repo)
    assert hub.requests == []


def test_offline_and_no_token_are_said_before_anything(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(EnvironmentProblem, match="no Hub token") as refused:
        check_push("me/model")
    assert "hf auth login" in refused.value.fix
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentProblem, match="HF_HUB_OFFLINE is set"):
        check_push("me/model")
    assert hub.requests == []


def test_who_may_not_write_hears_it_before_the_merge(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_push("Team/model")
    with pytest.raises(EnvironmentProblem, match="me has no part in others"):
        check_push("others/model")
    hub.role = "read"
    with pytest.raises(EnvironmentProblem, match="may only read"):
        check_push("me/model")
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    with pytest.raises(EnvironmentProblem, match="401") as refused:
        check_push("me/model")
    assert "hf_revoked" not in str(refused.value)
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("route", "status", "kind", "says"),
    [
        ("/preupload/", 403, EnvironmentProblem, "403"),
        ("/repos/create", 403, EnvironmentProblem, "may not write there"),
        ("/commit/", 500, EnvironmentProblem, "the Hub answers 500: not today"),
        ("/validate-yaml", 400, ConfigError, "Invalid metadata in README.md. - bad metadata"),
    ],
)
def test_a_refused_push_leaves_both_sides_as_they_were(
    hub: FakeHub, model: Path, route: str, status: int, kind: type[RankZeroError], says: str
) -> None:
    before = contents(model)
    hub.failures = {route: status}
    with pytest.raises(kind, match=says) as refused:
        push_folder(model, "me/model")
    assert TOKEN not in str(refused.value)
    assert (hub.files, contents(model)) == ({}, before)
    hub.failures = {}
    push_folder(model, "me/model")
    assert hub.files["README.md"] == CARD.encode()


def test_no_network(hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # nobody listens
    with pytest.raises(EnvironmentProblem, match="cannot be pushed to") as refused:
        push_folder(model, "me/model")
    assert "run the same command again" in refused.value.fix


def test_private_is_never_made_public_and_two_models_never_mixed(hub: FakeHub, model: Path) -> None:
    hub.repos["me/model"] = False
    with pytest.raises(ConfigError, match="exists and is public"):
        check_push("me/model", private=True)
    hub.files["model-00001-of-00002.safetensors"] = b"other"
    with pytest.raises(ConfigError, match="holds other weights: model-00001"):
        push_folder(model, "me/model")
    assert hub.commits == []


def test_a_run_s_adapter_goes_to_the_hub_with_a_card_and_without_paths(
    hub: FakeHub, tmp_path: Path
) -> None:
    run = RunDirectory(make_adapter(tmp_path / "a private place"))
    before = {path: path.read_bytes() for path in run.adapter.iterdir()}
    values = {
        "model": {"name": str(tmp_path / "a private place" / "base")},
        "data": {"train": "rows.jsonl"},
        "hub": {"repository": "me/tiny"},
        "output_dir": str(run.path),
    }
    assert publish_run(run, Config.model_validate(values)) == f"{hub.url}/me/tiny"
    assert hub.repos == {"me/tiny": True}
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "base"
    assert b"# LoRA adapter for base" in hub.files["README.md"]
    assert not any(b"a private place" in content for content in hub.files.values())
    assert {path: path.read_bytes() for path in run.adapter.iterdir()} == before
