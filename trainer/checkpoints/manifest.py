"""manifest.json: the size and SHA-256 of every file of a checkpoint, and the check against it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.checkpoints.folder import Checkpoint, list_checkpoints

FILE_NAME = "manifest.json"
FORMAT = 1
_BLOCK_BYTES = 2**22
_THREADS = 4  # hashlib works outside the interpreter lock; a checkpoint has few large files


@dataclass(frozen=True)
class Search:
    """The newest valid checkpoint, and what is wrong with each newer one."""

    found: Checkpoint | None
    skipped: tuple[tuple[Checkpoint, str], ...]


class _Damaged(Exception):
    """The message is the sentence for the reader."""


@dataclass(frozen=True)
class _Entry:
    name: str
    size_bytes: int
    sha256: str


def write_manifest(folder: Path) -> None:
    """Write the manifest of every file below the folder; nothing may change after it.

    Raises: OSError.
    """
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / FILE_NAME
    )
    # A list, not an object by name: of two entries that damage made alike, an object keeps one.
    files = [
        {"name": name, "size_bytes": (folder / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, _digests(folder, names), strict=True)
    ]
    # Without a line end: a truncated manifest is never JSON.
    text = json.dumps({"format": FORMAT, "files": files}, indent=2)
    (folder / FILE_NAME).write_text(text, encoding="utf-8")


def newest_valid(folder: Path) -> Search:
    """Return the checkpoint with the highest step whose files are all as they were written."""
    skipped: list[tuple[Checkpoint, str]] = []
    for checkpoint in list_checkpoints(folder):
        problem = find_problem(checkpoint.path)
        if problem is None:
            return Search(checkpoint, tuple(skipped))
        skipped.append((checkpoint, problem))
    return Search(None, tuple(skipped))


def find_problem(checkpoint: Path, *, hashed: bool = True) -> str | None:
    """Return what is wrong with a checkpoint in one sentence, None when it is valid.

    Without `hashed` only the manifest and the sizes are looked at, which takes no time.
    """
    try:
        _check(checkpoint, hashed)
    except _Damaged as damage:
        return str(damage)
    except OSError as error:
        return f"{error.filename or checkpoint} cannot be read: {error.strerror or error}"
    return None


def is_damaged(checkpoint: Path, *, hashed: bool = True) -> bool:
    """Tell whether a checkpoint is damaged for sure; one that cannot be read now may be whole."""
    try:
        _check(checkpoint, hashed)
    except _Damaged:
        return True
    except OSError:
        return False
    return False


def _check(checkpoint: Path, hashed: bool) -> None:
    """Raises: _Damaged; OSError when something is there and cannot be read."""
    entries = _read_manifest(checkpoint)
    for entry in entries:
        _check_size(checkpoint, entry)
    if not hashed:
        return
    digests = _digests(checkpoint, (entry.name for entry in entries))
    for entry, digest in zip(entries, digests, strict=True):
        if digest != entry.sha256:
            raise _Damaged(
                f"{entry.name} does not have the content that was written (SHA-256 differs)"
            )


def _read_manifest(checkpoint: Path) -> list[_Entry]:
    try:
        content = json.loads((checkpoint / FILE_NAME).read_text(encoding="utf-8"))
        found, files = content["format"], content["files"]
        entries = [_to_entry(values) for values in files]
    except FileNotFoundError:
        raise _Damaged(f"it has no {FILE_NAME}: it was not written to the end") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _Damaged(f"{FILE_NAME} is not readable") from None
    if found != FORMAT:
        raise _Damaged(f"{FILE_NAME} has format {found}, this version reads {FORMAT}")
    if not entries:
        raise _Damaged(f"{FILE_NAME} names no file")
    return entries


def _to_entry(values: dict[str, Any]) -> _Entry:
    entry = _Entry(**values)
    if type(entry.size_bytes) is not int or b"\0" in os.fsencode(entry.name):
        raise TypeError
    if PurePosixPath(entry.name).is_absolute() or ".." in PurePosixPath(entry.name).parts:
        raise _Damaged(f"{FILE_NAME} names {entry.name}, which is outside of the checkpoint")
    return entry


def _check_size(checkpoint: Path, entry: _Entry) -> None:
    try:
        found = (checkpoint / entry.name).stat()
    except (FileNotFoundError, NotADirectoryError):
        raise _Damaged(f"{entry.name} is missing") from None
    if not stat.S_ISREG(found.st_mode):
        raise _Damaged(f"{entry.name} is not a file")
    if found.st_size != entry.size_bytes:
        raise _Damaged(
            f"{entry.name} has {found.st_size} bytes, the manifest says {entry.size_bytes}"
        )


def _digests(folder: Path, names: Iterable[str]) -> list[str]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda name: _digest(folder / name), names))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
