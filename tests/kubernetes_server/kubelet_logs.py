"""The part of a kubelet that the API server asks for logs: GET /containerLogs/... over HTTPS."""

from __future__ import annotations

import ssl
import subprocess
import tempfile
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.kubernetes_server.fake_pod import FakePod
from tests.kubernetes_server.http_server import Serving

LOOK_SECONDS = 0.5


class LogServer(Serving):
    """Serves the logs of the pods it was given."""

    def __init__(self) -> None:
        self._pods: dict[tuple[str, str], FakePod] = {}
        super().__init__(self._handler())
        self._server.socket = _encrypted(self._server)

    def add(self, pod: FakePod) -> None:
        self._pods[pod.namespace, pod.pod_name] = pod

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        pods = self._pods

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                _, _, namespace, name, _ = parts.path.split("/")
                pod = pods.get((namespace, name))
                if pod is None:
                    self.send_error(404, f"pod {name} not found")
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                _write_log(self, pod, query)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler


def _write_log(handler: BaseHTTPRequestHandler, pod: FakePod, query: dict[str, str]) -> None:
    since = _time(query["sinceTime"]) if "sinceTime" in query else None
    done = max(0, len(pod.lines) - int(query["tailLines"])) if "tailLines" in query else 0
    try:
        while True:
            with pod.said:
                new, is_over = pod.lines[done:], pod.is_over
                if not new and not is_over and query.get("follow") == "true":
                    pod.said.wait(LOOK_SECONDS)
                    continue
            done += len(new)
            for moment, line in new:
                if since is None or moment >= since:
                    stamp = f"{moment:%Y-%m-%dT%H:%M:%S.%f}000Z " if "timestamps" in query else ""
                    _write_chunk(handler, f"{stamp}{line}\n".encode())
            if is_over or query.get("follow") != "true":
                break
        _write_chunk(handler, b"")
    except (BrokenPipeError, ConnectionResetError):
        handler.close_connection = True


def _write_chunk(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
    handler.wfile.flush()


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _encrypted(server: ThreadingHTTPServer) -> ssl.SSLSocket:
    """Use a certificate of its own making: the API server asks for none that it knows."""
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder, "key.pem"), Path(folder, "certificate.pem")
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"),
                *("-subj", "/CN=kubelet", "-addext", "subjectAltName=IP:127.0.0.1"),
                *("-keyout", str(key), "-out", str(certificate)),
            ],
            check=True,
            capture_output=True,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    return context.wrap_socket(server.socket, server_side=True)
