"""Says again what a real API server said, along the time of the recording.

Reads move along the recording: each is answered by the next recorded answer to the same request,
and time never goes back, so that a Job and its pods always tell the same story. How often something
is read may differ; at the last answer before a write, time stands still. Writes must come as
recorded, in order. Everything else is an error that names the request.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

from tests.kubernetes_server.exchange import Exchange, Request
from tests.kubernetes_server.http_server import Answer, HttpServer


class NotRecorded(Exception):
    """A request that does not belong here."""


class Replay(HttpServer):
    """Answers from a recording."""

    def __init__(self, exchanges: Sequence[Exchange]) -> None:
        super().__init__()
        self._exchanges, self._position, self._lock = exchanges, 0, threading.Lock()
        self._keys = [each.request.key for each in exchanges]
        self._writes = [n for n, each in enumerate(exchanges) if each.request.is_write]

    @property
    def unsent(self) -> list[str]:
        """Every write of the recording that has not come."""
        return [str(self._exchanges[number].request) for number in self._writes]

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        request = Request.from_wire(method, target, body)
        with self._lock:
            number = self._write(request) if request.is_write else self._read(request)
            found = self._exchanges[number]
            if request.is_log and found.status == 200:
                return Answer(200, self._log(number, request).encode(), "text/plain")
        if isinstance(found.answer, str):
            return Answer(found.status, found.answer.encode(), "text/plain")
        return Answer(found.status, json.dumps(found.answer).encode(), "application/json")

    def _write(self, request: Request) -> int:
        if not self._writes:
            raise NotRecorded(f"{request}: the recording has no more writes")
        number = self._writes[0]
        if request.key != self._keys[number]:
            expected = self._exchanges[number].request
            raise NotRecorded(f"{request}: the recording goes on with {expected}")
        del self._writes[0]
        self._position = number + 1
        return number

    def _read(self, request: Request) -> int:
        end = self._writes[0] if self._writes else len(self._exchanges)
        key = request.key
        same = [number for number in range(end) if self._keys[number] == key]
        if not same:
            raise NotRecorded(f"{request}: not in the recording before its next write")
        later = [number for number in same if number >= self._position]
        if not later:
            return same[-1]
        self._position = later[0] + 1
        return later[0]

    def _log(self, number: int, request: Request) -> str:
        """Return a log as far as it had come: all that was read of it until then.

        A recorded answer has only what was new since the read before it.
        """
        lines: dict[str, None] = {}
        for each in self._exchanges[: number + 1]:
            if each.request.path == request.path and each.status == 200:
                lines |= dict.fromkeys(each.answer.splitlines(keepends=True))
        # As the API does: to the second.
        since = request.query.get("sinceTime", "")[: len("2026-01-01T00:00:00")]
        in_order = sorted(lines, key=lambda line: line.partition(" ")[0])
        found = [line for line in in_order if line >= since]
        return "".join(found[-int(request.query.get("tailLines", len(found) or 1)) :])
