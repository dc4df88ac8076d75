"""A first look into every file before any work: columns, shape, and settings that cannot apply."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from trainer.config import DataConfig
from trainer.data.problems import RawRow
from trainer.data.readers import read_rows
from trainer.data.rows import CHAT_SHAPES, Layout, choose_layout
from trainer.data.sources import SourceFile
from trainer.errors import DataError

_LOOKED_AT = 100  # rows: a column missing in all of them is a wrong mapping, not a bad row


@dataclass(frozen=True)
class LaidOutFile:
    """A file whose row shape is settled."""

    file: SourceFile
    layout: Layout

    def rows(self) -> Iterator[RawRow]:
        """Stream the rows."""
        return read_rows(self.file)


def lay_out(files: list[SourceFile], data: DataConfig) -> list[LaidOutFile]:
    """Settle the shape of every file. Raises one DataError with the problem of every bad file."""
    found: list[LaidOutFile] = []
    problems: list[str] = []
    for file in files:
        try:
            layout = _lay_out_file(file, data)
        except DataError as error:
            problems.append(str(error))
            continue
        found.append(LaidOutFile(file, layout))
        if data.too_long == "split" and layout.shape != "text":
            problems.append(
                f"data.too_long: split cuts plain text into pieces, but {file.path} has rows of "
                f"shape {layout.shape}; use truncate or skip"
            )
    if not problems:
        problems += _ignored_settings(found, data)
    if problems:
        raise DataError("\n".join(problems))
    return found


def _lay_out_file(file: SourceFile, data: DataConfig) -> Layout:
    with closing(read_rows(file)) as rows:
        first = list(islice(rows, _LOOKED_AT))
    if not first:
        raise DataError(
            f"{file.path}: no rows",
            rule="a source has at least one row",
            fix="write rows into it, or take it out of the config",
        )
    read = [row for row in first if row.problem is None]
    if not read:
        bad = first[0]
        assert bad.problem is not None
        raise DataError(
            f"{file.path}: no readable row; the first: {bad.problem.at(bad.where)}",
            fix="correct its rows, or give the file the extension of what it holds",
        )
    columns = list(dict.fromkeys(str(name) for row in read for name in row.value))
    try:
        return choose_layout(columns, file.source, data)
    except ValueError as error:
        raise DataError(
            f"{file.path}: {error}", fix="correct data.columns, or the names in the file"
        ) from None


def _ignored_settings(files: list[LaidOutFile], data: DataConfig) -> list[str]:
    if any(file.layout.shape in CHAT_SHAPES for file in files):
        return []
    shapes = " and ".join(sorted({file.layout.shape for file in files}))
    given = {"system_prompt": data.system_prompt, "chat_template": data.chat_template}
    return [
        f"data.{name} would be ignored: all rows are plain text (shape {shapes}); remove it"
        for name, value in given.items()
        if value is not None
    ]
