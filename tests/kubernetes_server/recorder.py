"""A proxy before a real API server that keeps what is said, without what is secret."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from tests.kubernetes_server.access import Access
from tests.kubernetes_server.exchange import Exchange, Request
from tests.kubernetes_server.http_server import Answer, HttpServer

_SENT_ON = ("Accept", "Content-Type")
_NOT_KEPT = ("managedFields",)
"""Bookkeeping of the server's: half of each object, and nothing a client of ours reads."""


class Recorder(HttpServer):
    """Passes requests on, with its own credentials and headers."""

    def __init__(self, access: Access, headers: Mapping[str, str]) -> None:
        super().__init__()
        self.exchanges: list[Exchange] = []
        self._headers = headers
        self._access, self._begun, self._lock = access, time.monotonic(), threading.Lock()

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        request = Request.from_wire(method, target, body)
        if {"watch", "follow"} & set(request.query):
            raise NotImplementedError(f"{request}: an answer without an end is not recorded")
        sent = {name: headers[name] for name in _SENT_ON if name in headers}
        sent.update(self._headers)
        with self._lock:
            response = self._access.open(method, target, body=body or None, headers=sent)
            content = response.read()
            response.release_conn()
            kind = response.headers.get("Content-Type", "")
            self._keep(request, response.status, content, kind)
        return Answer(response.status, content, kind)

    def _keep(self, request: Request, status: int, content: bytes, kind: str) -> None:
        is_json = kind.startswith("application/json")
        answer = _plain(json.loads(content)) if is_json else content.decode()
        if isinstance(answer, dict) and answer.get("kind", "").startswith("Secret"):
            raise NotImplementedError(f"{request}: secrets are not recorded")
        seconds = round(time.monotonic() - self._begun, 3)
        self.exchanges.append(Exchange(seconds, request, status, answer))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {key: _plain(each) for key, each in value.items() if key not in _NOT_KEPT}
    if "items" in found:
        # That of a list counts what happens anywhere: the same list would never be the same answer.
        found["metadata"].pop("resourceVersion", None)
    return found
