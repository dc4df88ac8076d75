"""The stand-in for an API server is strict enough for a test to fail, and tells one story."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes_server.exchange import Exchange, Request, read_recording, write_recording
from tests.kubernetes_server.replay import NotRecorded, Replay
from tests.kubernetes_server.stage import RECORDINGS

JOB, PODS, LOG = "/jobs/one", "/pods", "/pods/one-0/log"


def read(path: str, answer: Any, **query: str) -> Exchange:
    return Exchange(0, Request("GET", path, query), 200, answer)


def write(method: str, path: str, kind: str = "Job") -> Exchange:
    body = {"kind": kind, "metadata": {"name": "one"}}
    return Exchange(0, Request(method, path, {}, body), 200, {"made": kind})


def ask(replay: Replay, path: str, method: str = "GET", body: Any = None) -> Any:
    sent = b"" if body is None else json.dumps(body).encode()
    content = replay.answer(method, path, {}, sent).content.decode()
    return content if "/log" in path else json.loads(content)


def test_time_goes_on_with_reads_and_not_back() -> None:
    replay = Replay([read(JOB, 1), read(PODS, 1), read(JOB, 2), read(PODS, 2), read(JOB, 3)])
    assert [ask(replay, JOB), ask(replay, JOB)] == [1, 2]
    assert ask(replay, PODS) == 2, "pods of before the Job that was told"
    assert [ask(replay, JOB), ask(replay, JOB), ask(replay, PODS)] == [3, 3, 2]


def test_time_stands_still_before_a_write() -> None:
    made = write("POST", "/jobs")
    replay = Replay([read(JOB, 0), made, read(JOB, 1)])
    assert [ask(replay, JOB), ask(replay, JOB)] == [0, 0]
    assert replay.unsent == ["POST /jobs with Job one"]
    ask(replay, "/jobs", "POST", made.request.body)
    assert ask(replay, JOB) == 1
    assert not replay.unsent


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("GET", "/secrets", None),
        ("GET", "/pods?labelSelector=other", None),
        ("DELETE", JOB, None),  # is the second write
        ("POST", "/jobs", "JobSet"),
        ("POST", "/jobs?dryRun=All", "Job"),
    ],
)
def test_what_was_not_recorded_is_refused(method: str, path: str, kind: str | None) -> None:
    replay = Replay([read(PODS, 1), write("POST", "/jobs"), write("DELETE", JOB, "DeleteOptions")])
    body = None if kind is None else {"kind": kind, "metadata": {"name": "one"}}
    with pytest.raises(NotRecorded, match=path.partition("?")[0]):
        ask(replay, path, method, body)
    assert len(replay.unsent) == 2


def test_a_log_has_every_line_since_a_second() -> None:
    first, second, third = (f"2026-01-01T00:00:0{n}.500000000Z line {n}\n" for n in (1, 2, 3))
    replay = Replay(
        [
            read(LOG, first + second, container="node"),
            read(LOG, second, container="node", sinceTime="2026-01-01T00:00:02Z"),
            read(LOG, third, container="node", sinceTime="2026-01-01T00:00:03Z"),
        ]
    )
    assert ask(replay, f"{LOG}?container=node") == first + second
    since = f"{LOG}?container=node&sinceTime="
    assert ask(replay, f"{since}2026-01-01T00:00:01.900000000Z") == first + second
    assert ask(replay, f"{since}2026-01-01T00:00:02Z") == second + third
    assert ask(replay, f"{since}2026-01-01T00:00:09Z") == ""


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    exchanges = [
        read(JOB, {"a": 1}),
        write("POST", "/jobs"),
        read(PODS, {"a": 1}),
        read(LOG, "ü\n"),
    ]
    write_recording(tmp_path / "a.jsonl", exchanges)
    assert read_recording(tmp_path / "a.jsonl") == exchanges


def test_recordings_have_no_secret_and_no_place() -> None:
    places = [f"/{folder}" for folder in ("root/", "home/", "tmp/pytest")]
    for path in RECORDINGS.glob("*.jsonl"):
        text = path.read_text(encoding="utf-8")
        for word in ("Bearer", "Authorization", '"Secret"', *places):
            assert word not in text, f"{word} in {path.name}"
