"""What is kept of a terminal: lines a person can read later."""

from __future__ import annotations

import pytest

from launcher.terminal_log import PlainLines

BAR = b"\r\x1b[2Ktraining \x1b[32m---\x1b[0m %d/9 \xe2\x96\x88"


def plain(*chunks: bytes) -> bytes:
    lines = PlainLines()
    return b"".join(lines.feed(chunk) for chunk in chunks) + lines.end()


@pytest.mark.parametrize(
    ("shown", "kept"),
    [
        (b"one\ntwo", b"one\ntwo\n"),
        (b"\x1b[1mbold\x1b[0m\x1b[?25l\n", b"bold\n"),
        (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x07\n", b"link\n"),
        (b"one\r\ntwo\r\n", b"one\ntwo\n"),
        (b"10%\r20%\r30%\ndone\n", b"30%\ndone\n"),
        (BAR % 1 + BAR % 2 + b"\r\x1b[2Kstep 2\n" + BAR % 3 + b"\r\x1b[2K", b"step 2\n"),
        ("größer\n".encode(), "größer\n".encode()),
    ],
)
def test_the_same_lines_are_kept_however_they_arrive(shown: bytes, kept: bytes) -> None:
    assert plain(shown) == kept
    assert plain(*(shown[i : i + 1] for i in range(len(shown)))) == kept


def test_a_bar_of_a_day_needs_no_room() -> None:
    lines = PlainLines()
    assert all(lines.feed(BAR % step) == b"" for step in range(50_000))
    assert len(lines.end()) < 100


def test_a_line_without_end_is_not_held_for_ever() -> None:
    assert len(PlainLines().feed(b"x" * 100_000)) == 100_001
