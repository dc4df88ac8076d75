"""Plain HTTP requests to an API server, with what a kubeconfig says about reaching it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import urllib3
from kubernetes import config

MERGE_PATCH = "application/strategic-merge-patch+json"
SECONDS_TO_CONNECT = 10


class Refused(Exception):
    """The server's answer was an error."""

    def __init__(self, status: int, body: Any) -> None:
        self.status = status
        super().__init__(f"{status}: {body.get('message') if isinstance(body, dict) else body}")


@dataclass(frozen=True)
class Access:
    """An API server and the right to talk to it."""

    host: str
    headers: dict[str, str]
    pool: urllib3.PoolManager

    @classmethod
    def from_kubeconfig(cls, path: str) -> Access:
        found = config.new_client_from_config(path).configuration  # type: ignore[no-untyped-call]
        token = found.get_api_key_with_prefix("authorization") or found.get_api_key_with_prefix(
            "BearerToken"
        )
        pool = urllib3.PoolManager(
            maxsize=32,
            ca_certs=found.ssl_ca_cert,
            cert_file=found.cert_file,
            key_file=found.key_file,
            cert_reqs="CERT_REQUIRED" if found.verify_ssl else "CERT_NONE",
        )
        return cls(found.host, {"Authorization": token} if token else {}, pool)

    def open(
        self, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str]
    ) -> urllib3.BaseHTTPResponse:
        """Begin a request; the answer is read by the caller, also one without an end."""
        return self.pool.request(
            method,
            self.host + path,
            body=body,
            headers={**self.headers, **headers},
            preload_content=False,
            retries=False,
            redirect=False,
            timeout=urllib3.Timeout(connect=SECONDS_TO_CONNECT, read=None),
        )

    def request(
        self, method: str, path: str, body: Any = None, kind: str = "application/json"
    ) -> Any:
        """Send a request and return the answer.

        Raises: Refused.
        """
        sent = None if body is None else json.dumps(body).encode()
        response = self.open(method, path, body=sent, headers={"Content-Type": kind})
        answer = json.loads(response.read() or b"null")
        response.release_conn()
        if response.status >= 400:
            raise Refused(response.status, answer)
        return answer

    def patch(self, path: str, body: Any) -> Any:
        return self.request("PATCH", path, body, MERGE_PATCH)
