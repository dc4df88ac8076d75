"""Lines of JSON or text to rows, each with its place; nothing is held but the line at hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from trainer.data.problems import RawRow, RowProblem

BOM = b"\xef\xbb\xbf"
BYTES_PER_CHUNK = 1 << 19  # lines that are encoded together: bounds memory
KEPT_CHARS = 2000  # of an unreadable line, in the list of skipped rows


@dataclass(frozen=True)
class Lines:
    """Consecutive lines of a JSON-lines file, as bytes: whoever needs the rows reads them."""

    path: str
    first_line: int
    first_byte: int
    data: bytes

    def read(self) -> Iterator[RawRow]:
        """Yield the rows."""
        return json_rows(
            decoded_lines(self.path, BytesIO(self.data), self.first_line, self.first_byte)
        )


def read_lines(path: str) -> Iterator[Lines]:
    """Read a file, whatever its size, in portions of about `BYTES_PER_CHUNK`."""
    number, offset = 1, 0
    with Path(path).open("rb") as file:
        while lines := file.readlines(BYTES_PER_CHUNK):
            data = b"".join(lines)
            yield Lines(path, number, offset, data)
            number, offset = number + len(lines), offset + len(data)


def decoded_lines(
    path: str | Path, lines: Iterable[bytes], first_line: int = 1, first_byte: int = 0
) -> Iterator[tuple[str, str, RowProblem | None, int]]:
    """Yield (where, text, problem, bytes) per non-blank line; bad UTF-8 gets its byte offset."""
    offset = first_byte
    for number, read in enumerate(lines, first_line):
        where, line, size, start = f"{path}:{number}", read, len(read), offset
        offset += size
        if number == 1 and line.startswith(BOM):
            line, start = line[len(BOM) :], start + len(BOM)
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            message = (
                f"bad UTF-8: byte 0x{line[error.start]:02x} at byte {error.start} of the line "
                f"(byte {start + error.start} of the file); text must be UTF-8"
            )
            yield where, repr(line[:KEPT_CHARS]), RowProblem("bad UTF-8", message), size
            continue
        if text.strip():
            yield where, text, None, size


def json_rows(lines: Iterable[tuple[str, str, RowProblem | None, int]]) -> Iterator[RawRow]:
    """Parse decoded lines, an object each; what is not one carries its problem."""
    for where, text, problem, size in lines:
        if problem is None:
            yield _object_row(where, text, size)
        else:
            yield RawRow(where, {}, problem, text, size)


def _object_row(where: str, text: str, num_bytes: int) -> RawRow:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        message = f"malformed JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
        problem = RowProblem("malformed JSON", message)
        return RawRow(where, {}, problem, text[:KEPT_CHARS], num_bytes)
    except RecursionError:
        problem = RowProblem("malformed JSON", "malformed JSON: nested too deeply")
        return RawRow(where, {}, problem, text[:KEPT_CHARS], num_bytes)
    return checked_object(where, value, num_bytes)


def checked_object(where: str, value: Any, num_bytes: int) -> RawRow:
    """Make a row of a JSON value that must be an object."""
    if isinstance(value, dict):
        return RawRow(where, value, num_bytes=num_bytes)
    message = f"the row is a JSON {_json_type(value)}, it must be an object with named columns"
    problem = RowProblem("not an object", message)
    return RawRow(where, {}, problem, json.dumps(value)[:KEPT_CHARS], num_bytes)


def _json_type(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
