"""An HTTP server on this machine that answers as a method says."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TypeVar

_Server = TypeVar("_Server", bound="Serving")


@dataclass(frozen=True)
class Answer:
    """What goes back."""

    status: int
    content: bytes
    content_type: str


class Serving:
    """Serves on this machine while a block is entered."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    def __enter__(self: _Server) -> _Server:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class HttpServer(Serving):
    """Answers by a method; `problems` tells what a test must fail for."""

    def __init__(self) -> None:
        super().__init__(_handler(self))
        self.problems: list[str] = []
        self.address = f"http://127.0.0.1:{self.port}"

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """Answer one request."""
        raise NotImplementedError


def _handler(server: HttpServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # An answer's head and body go together; apart, each request would wait 40 ms.
        wbufsize = -1

        def _respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                answer = server.answer(self.command, self.path, dict(self.headers), body)
            except Exception as error:  # noqa: BLE001  # whatever it is, the test must hear of it
                server.problems.append(str(error) or type(error).__name__)
                answer = Answer(500, str(error).encode(), "text/plain")
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _respond  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler
