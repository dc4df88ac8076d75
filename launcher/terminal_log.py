"""What an engine and rank 0 print: passed on unchanged, and kept as plain lines."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path

_ESCAPE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
"""CSI, OSC and two-byte sequences. Source: ECMA-48 section 5.4."""
_MAX_LINE_BYTES = 65_536
_CHUNK_BYTES = 65_536


class PlainLines:
    """Turn what goes to a terminal into lines worth keeping. PURE but for the unfinished line.

    Of a line that was drawn again and again, only what stood there at its end stays: a progress
    bar of a day must not fill the disk.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes and return the lines that they complete."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        plain = b"".join(_plain(line) + b"\n" for line in lines)
        # The last byte may be half of a line's end; what stands before an earlier return is gone.
        redrawn = self._rest.rfind(b"\r", 0, len(self._rest) - 1)
        self._rest = self._rest[redrawn + 1 :]
        if len(self._rest) > _MAX_LINE_BYTES:
            plain, self._rest = plain + _plain(self._rest) + b"\n", b""
        return plain

    def end(self) -> bytes:
        """Return the unfinished last line."""
        rest, self._rest = _plain(self._rest), b""
        return rest + b"\n" if rest else b""


def _plain(line: bytes) -> bytes:
    shown = _ESCAPE.sub(b"", line.rstrip(b"\r")).rpartition(b"\r")[2]
    return shown.rstrip()


class TerminalLog:
    """A file that the threads passing on stdout and stderr share."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()

    def write(self, lines: bytes) -> None:
        """Write lines; a full disk loses them, not the run."""
        with self._lock:
            try:
                self._file.write(lines)
            except OSError:
                return

    def close(self) -> None:
        self._file.close()


def pass_on(source: int, target: int, log: TerminalLog) -> threading.Thread:
    """Copy everything from one descriptor to another and to the log until it ends."""
    thread = threading.Thread(target=_copy, args=(source, target, log), daemon=True)
    thread.start()
    return thread


def _copy(source: int, target: int, log: TerminalLog) -> None:
    lines = PlainLines()
    is_read = True
    while chunk := os.read(source, _CHUNK_BYTES):
        log.write(lines.feed(chunk))
        if is_read:
            is_read = _write_all(target, chunk)
    log.write(lines.end())
    os.close(source)


def _write_all(target: int, chunk: bytes) -> bool:
    """Write all of it; false when nobody reads any more, as behind `| head`."""
    try:
        while chunk:
            chunk = chunk[os.write(target, chunk) :]
    except OSError:
        return False
    return True


def terminal_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what lets rich draw its bar through a pipe that ends on this terminal.

    Source: rich.console.Console.is_terminal and .size, rich 14.0 and newer.
    """
    if not os.isatty(2):
        return {}
    size = os.get_terminal_size(2)
    wanted = {"TTY_COMPATIBLE": "1", "COLUMNS": str(size.columns), "LINES": str(size.lines)}
    return {name: value for name, value in wanted.items() if name not in environment}
