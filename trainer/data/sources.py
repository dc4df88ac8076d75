"""From `data.train: path` to the files behind it: files, folders, or a Hub dataset."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.config import DataConfig, Source
from trainer.errors import DataError

Role = Literal["train", "validation", "test"]
ROLES: tuple[Role, ...] = ("train", "validation", "test")
KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "txt",
}
_KNOWN = "jsonl, json, csv, tsv, parquet, txt"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class SourceFile:
    """One file (or one Hub dataset) of one source, and the split its rows belong to."""

    path: str
    kind: str
    """jsonl, json, csv, tsv, parquet, txt or hub."""
    source_index: int
    """Position among all sources: train first, then validation, then test."""
    source: Source
    role: Role


def all_sources(data: DataConfig) -> list[tuple[Role, Source]]:
    """List every source with the split it was named for; the position is the source's index."""
    return [(role, source) for role in ROLES for source in getattr(data, role)]


def find_files(data: DataConfig) -> list[SourceFile]:
    """List the files of every source, in order. Raises DataError naming every missing one."""
    files: list[SourceFile] = []
    problems: list[str] = []
    for index, (role, source) in enumerate(all_sources(data)):
        try:
            found = _files_behind(source.path)
        except DataError as error:
            problems.append(f"data.{role}: {error}")
            continue
        files += [SourceFile(path, kind, index, source, role) for path, kind in found]
    if problems:
        raise DataError("\n".join(problems))
    return files


def _files_behind(path: str) -> list[tuple[str, str]]:
    location = Path(path).expanduser()
    if location.is_dir():
        return _files_in_folder(location)
    if location.is_file():
        kind = KINDS.get(location.suffix.lower())
        if kind is None:
            raise DataError(
                f"{path}: unknown kind of file {location.suffix or '(no extension)'!r}",
                rule=f"the extension says how a file is read: {_KNOWN}",
                fix="rename or convert it",
            )
        return [(str(location), kind)]
    if _looks_like_a_file(path) or not _HUB_ID.fullmatch(path):
        raise _missing(path, location)
    return [(path, "hub")]


def _files_in_folder(folder: Path) -> list[tuple[str, str]]:
    inside = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(folder).parts)
    )
    known = [
        (str(file), KINDS[file.suffix.lower()]) for file in inside if file.suffix.lower() in KINDS
    ]
    if not known:
        names = ", ".join(file.name for file in inside[:5]) or "nothing"
        raise DataError(
            f"{folder}: no data files in this folder (it holds {names})",
            rule=f"a folder stands for the files in it that end in {_KNOWN}",
            fix="name the file, or put the data there",
        )
    return known


def _looks_like_a_file(path: str) -> bool:
    return (
        Path(path).suffix.lower() in KINDS
        or path.startswith(("/", ".", "~"))
        or path.count("/") > 1
        or "\\" in path
    )


def _missing(path: str, location: Path) -> DataError:
    parent = location.parent
    if not parent.is_dir():
        return DataError(
            f"{path}: no such file, and no folder {parent}",
            rule="paths are relative to the folder the command runs in",
            fix="check the path",
        )
    names = sorted(entry.name for entry in parent.iterdir())
    close = difflib.get_close_matches(location.name, names, n=3)
    if close:
        fix = "did you mean " + " or ".join(str(parent / name) for name in close) + "?"
    else:
        fix = f"{parent} holds: {', '.join(names[:8]) or 'nothing'}"
    return DataError(f"{path}: no such file", fix=fix)
