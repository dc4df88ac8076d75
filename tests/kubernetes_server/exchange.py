"""One request to an API server and its answer, as recordings keep it. PURE, but for the files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

READING = "GET"
_ANY_TIME = frozenset({"sinceTime"})
"""Parameters whose value depends on when a recording was made."""


@dataclass(frozen=True)
class Request:
    """What was asked."""

    method: str
    path: str
    query: dict[str, str]
    body: Any = None

    @classmethod
    def from_wire(cls, method: str, target: str, body: bytes) -> Request:
        parts = urlsplit(target)
        query = dict(sorted(parse_qsl(parts.query, keep_blank_values=True)))
        return cls(method, parts.path, query, json.loads(body) if body else None)

    @property
    def is_write(self) -> bool:
        return self.method != READING

    @property
    def is_log(self) -> bool:
        return self.path.endswith("/log")

    @property
    def key(self) -> tuple[object, ...]:
        """Return what two requests for the same have in common.

        Of an object that is sent, that is only which one it is. What it contains is the
        rendering's, and tested there: a changed default need not mean new recordings.
        """
        query = {name: value for name, value in self.query.items() if name not in _ANY_TIME}
        return self.method, self.path, query, _kind_and_name(self.body)

    def __str__(self) -> str:
        query = "&".join(f"{name}={value}" for name, value in self.query.items())
        kind, name = _kind_and_name(self.body)
        sent = f" with {kind} {name}".rstrip() if self.body is not None else ""
        return f"{self.method} {self.path}{query and '?' + query}{sent}"


@dataclass(frozen=True)
class Exchange:
    """A request and its answer."""

    seconds: float
    """Since the recording began."""
    request: Request
    status: int
    answer: Any
    """JSON, or the text of a log."""


def write_recording(path: Path, exchanges: Sequence[Exchange]) -> None:
    """Write one line for each; an answer given before is named by that line's number."""
    seen: dict[str, int] = {}
    lines = []
    for number, each in enumerate(exchanges):
        record = {"seconds": each.seconds, **vars(each.request), "status": each.status}
        text = json.dumps(each.answer)
        if text in seen:
            record["answer_of"] = seen[text]
        else:
            seen[text] = number
            record["answer"] = each.answer
        lines.append(json.dumps(record, ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_recording(path: Path) -> list[Exchange]:
    """Read what `write_recording` wrote."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Exchange(
            record["seconds"],
            Request(*(record[name] for name in ("method", "path", "query", "body"))),
            record["status"],
            records[record["answer_of"]]["answer"] if "answer_of" in record else record["answer"],
        )
        for record in records
    ]


def _kind_and_name(body: Any) -> tuple[str, str]:
    if not isinstance(body, dict):
        return "", ""
    return body.get("kind", ""), body.get("metadata", {}).get("name", "")
