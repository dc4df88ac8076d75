"""Reading one file into rows, each with its place. Streams where the format permits."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.data.lines import (
    BOM,
    KEPT_CHARS,
    Lines,
    checked_object,
    decoded_lines,
    json_rows,
    read_lines,
)
from trainer.data.problems import RawRow, RowProblem
from trainer.data.sources import SourceFile
from trainer.errors import DataError, EnvironmentProblem

_PARQUET_ROWS = 1000  # rows decoded at a time: bounds memory whatever the row group size
ROWS_PER_CHUNK = 1000  # rows that are encoded together: bounds memory


def read_chunks(file: SourceFile) -> Iterator[list[RawRow] | Lines]:
    """Read a file in portions of bounded size; JSON lines are not looked into."""
    if file.kind == "jsonl":
        yield from read_lines(file.path)
        return
    rows = read_rows(file)
    while chunk := list(islice(rows, ROWS_PER_CHUNK)):
        yield chunk


def read_rows(file: SourceFile) -> Generator[RawRow, None, None]:
    """Yield the rows of one file. Blank lines of text formats are not rows.

    A row that cannot be read carries its problem; a file that cannot raises DataError.
    """
    if file.kind == "hub":
        return _read_hub(file)
    return _READERS[file.kind](Path(file.path))


def _read_jsonl(path: Path) -> Generator[RawRow, None, None]:
    with path.open("rb") as file:
        yield from json_rows(decoded_lines(path, file))


def _read_txt(path: Path) -> Generator[RawRow, None, None]:
    with path.open("rb") as file:
        for where, text, problem, size in decoded_lines(path, file):
            if problem is None:
                yield RawRow(where, {"text": text}, num_bytes=size)
            else:
                yield RawRow(where, {}, problem, text, size)


def _read_json(path: Path) -> Generator[RawRow, None, None]:
    """Yield rows of an array, of the one list inside an object, or of JSON lines named .json."""
    try:
        text = path.read_bytes().removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{path}: bad UTF-8: byte 0x{error.object[error.start]:02x} at byte {error.start}"
        raise DataError(message, rule="text must be UTF-8", fix="re-encode the file") from error
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _read_jsonl(path)
            return
        raise DataError(
            f"{path}:{error.lineno}: malformed JSON: {error.msg.removesuffix(' at')} "
            f"at column {error.colno}",
            rule="a .json file is one array of objects, an object holding one, or JSON lines",
            fix="correct that line, or write one object per line (.jsonl): "
            "there bad lines can be skipped",
        ) from error
    start = _start_of_list(path, text, whole)
    if start is None:
        yield checked_object(f"{path}:1", whole, len(text))
        return
    yield from _array_items(path, text, start)


def _start_of_list(path: Path, text: str, whole: Any) -> int | None:
    """Return the position of the rows' `[`; None when the file is one row, itself an object."""
    first = len(text) - len(text.lstrip())
    if isinstance(whole, list):
        return first
    if not isinstance(whole, dict):
        return None
    lists = [
        key
        for key, value in whole.items()
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    ]
    if len(lists) > 1 and not any(isinstance(value, str) for value in whole.values()):
        raise DataError(
            f"{path}: several lists inside ({', '.join(lists)})",
            rule="a .json object may hold one list of rows",
            fix="write the rows you mean to a file of their own",
        )
    if len(lists) != 1 or lists[0] in ("messages", "conversations"):
        return None
    decoder, position = json.JSONDecoder(), first + 1
    while True:
        key, position = decoder.raw_decode(text, _skip(text, position, " \t\r\n,"))
        position = _skip(text, position, " \t\r\n:")
        if key == lists[0]:
            return position
        position = decoder.raw_decode(text, position)[1]


def _skip(text: str, position: int, characters: str) -> int:
    while text[position] in characters:
        position += 1
    return position


def _array_items(path: Path, text: str, start: int) -> Iterator[RawRow]:
    """Walk a valid array item by item, so that each one knows its line."""
    decoder = json.JSONDecoder()
    position, counted, line = start + 1, 0, 1
    while True:
        position = _skip(text, position, " \t\r\n,")
        if text[position] == "]":
            return
        line += text.count("\n", counted, position)
        counted = position
        value, position = decoder.raw_decode(text, position)
        yield checked_object(f"{path}:{line}", value, position - counted)


def _read_csv(path: Path, delimiter: str = ",") -> Generator[RawRow, None, None]:
    csv.field_size_limit(2**31 - 1)
    # surrogateescape keeps undecodable bytes visible, so that one bad row does not end the file
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        header = next(reader, None)
        if header is None:
            return
        duplicates = sorted({name for name in header if header.count(name) > 1})
        if duplicates:
            raise DataError(
                f"{path}:1: column names used twice: {', '.join(duplicates)}",
                rule="the first line of a csv file names its columns, each once",
                fix="rename one of them",
            )
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                problem = RowProblem("malformed csv", f"malformed csv: {error}")
                yield RawRow(f"{path}:{line}", {}, problem, "")
                continue
            if cells is None:
                return
            if cells:
                yield _csv_row(f"{path}:{line}", header, cells)


def _csv_row(where: str, header: list[str], cells: list[str]) -> RawRow:
    num_bytes = sum(map(len, cells)) + len(cells)
    problem = None
    if len(cells) != len(header):
        message = f"{len(cells)} fields, but the header names {len(header)} columns"
        problem = RowProblem("malformed csv", message)
    for name, cell in zip(header, cells, strict=False):
        if any("\udc80" <= character <= "\udcff" for character in cell):
            offset = next(i for i, byte in enumerate(cell) if "\udc80" <= byte <= "\udcff")
            byte = ord(cell[offset]) - 0xDC00
            at = len(cell[:offset].encode("utf-8"))
            message = f"bad UTF-8: byte 0x{byte:02x} at byte {at} of the field; text must be UTF-8"
            problem = RowProblem("bad UTF-8", message, name)
    if problem is not None:
        return RawRow(where, {}, problem, repr(cells)[:KEPT_CHARS], num_bytes)
    return RawRow(where, dict(zip(header, cells, strict=True)), num_bytes=num_bytes)


def _read_tsv(path: Path) -> Generator[RawRow, None, None]:
    return _read_csv(path, "\t")


def _read_parquet(path: Path) -> Generator[RawRow, None, None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            num_bytes = path.stat().st_size // max(1, file.metadata.num_rows)
            number = 0
            for batch in file.iter_batches(_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield RawRow(f"{path}:row {number}", row, num_bytes=num_bytes)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}: not a readable parquet file: {error}",
            fix="copy or write it again, whole",
        ) from error


def _read_hub(file: SourceFile) -> Generator[RawRow, None, None]:
    where = f"{file.path}[{file.source.split}]"
    for number, row in enumerate(load_hub_dataset(file.path, file.source.split), 1):
        yield RawRow(f"{where}:row {number}", row)


def load_hub_dataset(name: str, split: str) -> Iterable[dict[str, Any]]:
    """Load one split of a Hub dataset (from its local cache when there is no network)."""
    try:
        from datasets import DownloadMode, load_dataset
    except ImportError as error:
        raise EnvironmentProblem(
            f"{name} is not a file here, and Hub datasets need the library `datasets`",
            fix="pip install datasets, or check the path",
        ) from error
    try:
        dataset: Iterable[dict[str, Any]] = load_dataset(
            name, split=split, download_mode=DownloadMode.REUSE_DATASET_IF_EXISTS
        )
        return dataset
    except ConnectionError as error:
        raise EnvironmentProblem(
            f"{name} is not a file or folder here, and the Hub cannot be reached "
            f"to look for a dataset of that name ({_first_line(error)})",
            rule="a source is a file, a folder, or a Hub dataset id",
            fix="check the path, or fetch the dataset once where there is a network",
        ) from error
    except (FileNotFoundError, ValueError) as error:
        raise DataError(
            f"{name} is not a file or folder here, and not a Hub dataset with "
            f"a split {split!r}: {_first_line(error)}",
            fix="check the path, the dataset id and `split`",
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


_READERS: dict[str, Callable[[Path], Generator[RawRow, None, None]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "txt": _read_txt,
}
