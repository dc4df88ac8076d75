"""The cache of prepared data: addressed by content, entries appear whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from trainer.cache_root import cache_root
from trainer.config import Config
from trainer.data.readers import load_hub_dataset
from trainer.data.sources import SourceFile, all_sources
from trainer.data.store import FORMAT_VERSION
from trainer.data.tokenizer import template_bytes, tokenizer_files
from trainer.errors import EnvironmentProblem

# Raise when the same input would give other ids, masks, splits or reports than before.
PREPARE_VERSION = 2
_BLOCK_BYTES = 1 << 20
_NOT_CONTENT = {"workers", "cache_dir", "chat_template", "train", "validation", "test"}


def cache_folder(config: Config) -> Path:
    """Return the folder that holds the entries."""
    return cache_root(config.data.cache_dir) / "prepared"


def entry_path(config: Config, files: list[SourceFile]) -> Path:
    """Return where the prepared data of this config is, or will be."""
    return cache_folder(config) / fingerprint(config, files)


def fingerprint(config: Config, files: list[SourceFile]) -> str:
    """Hash everything that decides the prepared data: sources, settings, tokenizer, code version.

    Paths do not count, contents do: a moved file is still found.
    """
    hasher = hashlib.blake2b(digest_size=16)
    add = _framed(hasher.update)
    settings = {
        "version": [PREPARE_VERSION, FORMAT_VERSION],
        "seed": config.seed,
        "data": config.data.model_dump(mode="json", exclude=_NOT_CONTENT),
        "sources": [
            {"role": role, **source.model_dump(mode="json", exclude={"path"})}
            for role, source in all_sources(config.data)
        ],
    }
    add([json.dumps(settings, sort_keys=True).encode()])
    add(template_bytes(config))
    add(_order_function_bytes(config.data.order))
    for path in tokenizer_files(config.model):
        add([path.name.encode(), _file_digest(path)])
    for file in files:
        add([f"{file.source_index} {file.kind}".encode(), _source_digest(file)])
    return hasher.hexdigest()


def _framed(update: Callable[[bytes], None]) -> Callable[[Iterable[bytes]], None]:
    """Hash parts with their lengths, so that moving a byte between parts changes the result."""

    def add(parts: Iterable[bytes]) -> None:
        for part in parts:
            update(len(part).to_bytes(8, "little"))
            update(part)
        update(b"\xff" * 8)

    return add


def _source_digest(file: SourceFile) -> bytes:
    if file.kind != "hub":
        return _file_digest(Path(file.path))
    dataset = load_hub_dataset(file.path, file.source.split)
    return str(dataset._fingerprint).encode()  # type: ignore[attr-defined]  # content hash of the library


def _file_digest(path: Path) -> bytes:
    hasher = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                hasher.update(block)
    except OSError as error:
        raise EnvironmentProblem(
            f"{path} cannot be read: {error.strerror}", fix="check its permissions"
        ) from error
    return hasher.digest()


def _order_function_bytes(order: str) -> Iterable[bytes]:
    if not order.startswith("function:"):
        return
    module = order.removeprefix("function:").rpartition(".")[0]
    try:
        spec = importlib.util.find_spec(module) if module else None
    except (ImportError, ValueError):
        spec = None  # reported when the function is loaded
    if spec is not None and spec.origin and Path(spec.origin).is_file():
        yield _file_digest(Path(spec.origin))


def is_complete(entry: Path) -> bool:
    """Tell whether an entry is there. It was renamed into place, so it is whole."""
    return (entry / "entry.json").is_file()


def write_entry(entry: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a temporary sibling, then publish it by rename.

    Two writers cannot clash: each has its own sibling, the first rename wins and the other's
    identical work is discarded. What a killed writer leaves is never looked at.
    """
    staging = entry.with_name(f".{entry.name}.{uuid.uuid4().hex}.tmp")
    try:
        staging.mkdir(parents=True)
        try:
            fill(staging)
            (staging / "entry.json").write_text(json.dumps({"fingerprint": entry.name}) + "\n")
            _sync(staging)
            _publish(staging, entry)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        where = error.filename or entry.parent
        raise EnvironmentProblem(
            f"prepared data cannot be written to {entry.parent}: "
            f"{error.strerror or error} ({where})",
            rule="the cache needs a writable folder with room for about 5 bytes per token",
            fix="set data.cache_dir or RANKZERO_CACHE to another place, or make room",
        ) from error


def _publish(staging: Path, entry: Path) -> None:
    try:
        staging.rename(entry)
    except OSError:
        if not is_complete(entry):
            raise
        return  # another writer was first
    _sync_path(entry.parent)


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        _sync_path(file)
    _sync_path(folder)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
