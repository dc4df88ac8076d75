"""Requests to the API server, one method each, and what an answer other than success means."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

from launcher.kubernetes.client.connection import Connection
from launcher.kubernetes.client.refusal import Refusal, Unreachable, read_answer
from launcher.kubernetes.client.resources import Object, name_of, path_of
from trainer.errors import EnvironmentProblem

FIELD_MANAGER = "rankzero"
_TIMEOUT_SECONDS = (10, 60)
"""To connect; between two bytes."""
_BUSY = (429, 502, 503, 504)
_APPLY = "application/apply-patch+yaml"


class Api(Protocol):
    """What the commands need of a cluster."""

    @property
    def namespace(self) -> str: ...
    def get(self, kind: str, name: str) -> Object | None: ...
    def list(
        self, kind: str, *, labels: Mapping[str, str] | None = None, fields: str = ""
    ) -> list[Object]: ...
    def create(self, value: Object, *, is_dry_run: bool = False) -> Object: ...
    def apply(self, value: Object, *, is_dry_run: bool = False) -> Object: ...
    def delete(self, kind: str, name: str) -> None: ...
    def read_log(
        self, pod: str, container: str, *, since: str | None = None, last_lines: int | None = None
    ) -> str: ...


class ApiServer:
    """The API of a real cluster, in one namespace.

    Raises, from every method: Refusal; Unreachable; EnvironmentProblem for credentials that the
    server does not accept, or a certificate that we do not.
    """

    def __init__(self, connection: Connection) -> None:
        from kubernetes.dynamic import DynamicClient

        self.namespace = connection.namespace
        self.host = connection.client.configuration.host
        make_client: Any = DynamicClient  # the library's is untyped
        self._client = make_client(connection.client, discoverer=_NoDiscovery)

    def get(self, kind: str, name: str) -> Object | None:
        """Return one object; None when it, or its kind, is not there."""
        try:
            return self._json("get", kind, name)
        except Refusal as refusal:
            if refusal.answer.is_missing:
                return None
            raise

    def list(
        self, kind: str, *, labels: Mapping[str, str] | None = None, fields: str = ""
    ) -> list[Object]:
        """Return the objects with these labels, or that a field selector names, by name."""
        selector = ",".join(f"{key}={value}" for key, value in (labels or {}).items())
        found = self._json(
            "get", kind, label_selector=selector or None, field_selector=fields or None
        )
        # Of a list's items the server says the kind once, for all.
        items = [{**each, "kind": kind} for each in found.get("items") or []]
        return sorted(items, key=name_of)

    def create(self, value: Object, *, is_dry_run: bool = False) -> Object:
        """Create an object; one of that name must not be there."""
        return self._json("post", value["kind"], name_of(value), body=value, **_writing(is_dry_run))

    def apply(self, value: Object, *, is_dry_run: bool = False) -> Object:
        """Create an object, or make one that is there say the same (server-side apply)."""
        return self._json(
            "patch",
            value["kind"],
            name_of(value),
            body=value,
            content_type=_APPLY,
            force_conflicts="true",
            **_writing(is_dry_run),
        )

    def delete(self, kind: str, name: str) -> None:
        """Begin to delete an object, and before it what it has made; none there is fine."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
        try:
            self._json("delete", kind, name, body=body)
        except Refusal as refusal:
            if not refusal.answer.is_missing:
                raise

    def read_log(
        self, pod: str, container: str, *, since: str | None = None, last_lines: int | None = None
    ) -> str:
        """Return a container's log, a timestamp before every line."""
        given = {"sinceTime": since, "tailLines": last_lines}
        query = [("container", container), ("timestamps", "true")]
        query += [(name, str(value)) for name, value in given.items() if value is not None]
        data = self._send("get", "Pod", pod, "log", query_params=query, accept="*/*")
        return data.decode("utf-8", errors="replace")

    def _json(self, method: str, kind: str, name: str = "", **options: Any) -> Object:
        found: Object = json.loads(self._send(method, kind, name, **options))
        return found

    def _send(
        self,
        method: str,
        kind: str,
        name: str,
        part: str = "",
        accept: str = "application/json",
        **options: Any,
    ) -> bytes:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        path = path_of(kind, self.namespace, "" if method == "post" else name, part)
        options["header_params"] = {"Accept": accept}
        try:
            response = self._client.request(
                method, path, serialize=False, _request_timeout=_TIMEOUT_SECONDS, **options
            )
            # Of a log it has been the connection alone so far.
            return bytes(response.data)
        except ApiException as error:
            raise self._error(error, kind, name) from None
        except (HTTPError, OSError) as error:
            raise self._unreachable(_words(error)) from None

    def _error(self, error: Any, kind: str, name: str) -> EnvironmentProblem:
        body = error.body if isinstance(error.body, (str, bytes)) else ""
        text = body.decode("utf-8", errors="replace") if isinstance(body, bytes) else body
        if error.status in (0, None):  # so the client tells of TLS
            return self._untrusted(str(error.reason))
        answer = read_answer(error.status, text)
        if error.status == 401:
            return EnvironmentProblem(
                f"{self.host} does not accept your credentials",
                rule="a token or certificate is valid for a time",
                fix="log in to the cluster again, as you did for kubectl",
            )
        if error.status in _BUSY:
            return self._unreachable(f"it answers {error.status}: {answer.message}")
        return Refusal(answer, kind, name, self.namespace)

    def _untrusted(self, words: str) -> EnvironmentProblem:
        if "certificate" not in words.lower():
            return self._unreachable(words)
        return EnvironmentProblem(
            f"the certificate of {self.host} is not to be trusted: {' '.join(words.split())}",
            rule="it is signed by the authority that the kubeconfig names",
            fix="take the cluster's kubeconfig anew; a cluster set up again has a new authority",
        )

    def _unreachable(self, words: str) -> Unreachable:
        return Unreachable(
            f"{self.host} cannot be reached: {words}",
            rule="the API server of the kubeconfig's context answers",
            fix="is the network (a VPN, a proxy) up, and does `kubectl get pods` work?",
        )


class _NoDiscovery:
    """Paths are known (`resources`); to ask for them would take ten requests more, and a cache."""

    def __init__(self, *_: object) -> None:
        pass


def _writing(is_dry_run: bool) -> dict[str, Any]:
    # A field that the cluster is too old to know is an error, not dropped in silence.
    # Source: kubernetes.io/docs/reference/using-api/api-concepts, "Field validation".
    query = [("fieldValidation", "Strict")] if is_dry_run else []
    return {
        "field_manager": FIELD_MANAGER,
        "dry_run": "All" if is_dry_run else None,
        "query_params": query,
    }


def _words(error: Exception) -> str:
    """Return what urllib3 means, without the object it names before."""
    inner = error.args[-1] if error.args else error
    words = re.sub(r"^\w+\(.*?\): ", "", str(inner if isinstance(inner, Exception) else error))
    return " ".join(words.split()) or type(error).__name__
