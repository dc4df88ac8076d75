"""The folder a merge is written into: a hidden sibling of the output, which it becomes by rename.

    .merged.partial/progress.json    what is merged with what, and the shards that are finished

An interrupted merge leaves it, and the next one of the same base and adapter goes on with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from trainer.durable import sync
from trainer.errors import ConfigError, EnvironmentProblem, Interrupted

_PROGRESS = "progress.json"


@dataclass
class Partial:
    """An unfinished output folder, which this process alone works in."""

    path: Path
    identity: Mapping[str, str]
    finished: dict[str, int]
    """Size of each shard that is whole."""

    def record(self, shard: str) -> None:
        """Remember a shard that is written and synced. Raises: OSError."""
        self.finished[shard] = (self.path / shard).stat().st_size
        text = json.dumps({"identity": dict(self.identity), "shards": self.finished}, indent=2)
        new = self.path / f"{_PROGRESS}.new"
        new.write_text(text, encoding="utf-8")
        sync(new)
        new.replace(self.path / _PROGRESS)

    def clear(self) -> None:
        """Forget what is finished. Raises: OSError."""
        self.finished = {}
        for file in self.path.iterdir():
            file.unlink()

    def seal(self) -> None:
        """Make the folder whole: readable for everyone, and on disk. Raises: OSError."""
        self.path.chmod(0o755)
        for file in self.path.iterdir():
            file.chmod(0o644)  # safetensors writes weights as 0600
            sync(file)
        (self.path / _PROGRESS).unlink(missing_ok=True)
        sync(self.path)


@contextmanager
def open_partial(output: Path, identity: Mapping[str, str]) -> Iterator[Partial]:
    """Yield the folder to write into, holding what an interrupted merge of the same finished.

    A request to stop leaves it for the next time; any other error removes it.
    Raises: EnvironmentProblem when it cannot be written, or another process is at it.
    """
    path = output.with_name(f".{output.name}.partial")
    with explaining_writes(output):
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
    try:
        _lock(descriptor, path)
        try:
            with explaining_writes(output):
                partial = Partial(path, identity, _clear(path, identity))
            yield partial
        except (KeyboardInterrupt, SystemExit, Interrupted):
            raise
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


@contextmanager
def explaining_writes(output: Path) -> Iterator[None]:
    """Turn a failed write into the error a user can act on. Raises: EnvironmentProblem."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            where = f" ({error.filename})" if error.filename else ""
            reason = (error.strerror or reason) + where
        raise EnvironmentProblem(
            f"{output} cannot be created: {reason}",
            rule="the merged model is written beside its place and appears by rename",
            fix="free space, or let this user write there, or choose another --output",
        ) from error


def _lock(descriptor: int, path: Path) -> None:
    """Take the folder for this process, as far as its file system knows locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_mine = path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino
    except BlockingIOError:
        is_mine = False
    except OSError:  # no locks here
        return
    if not is_mine:
        raise ConfigError(
            f"another process is merging into {path}",
            rule="one merge writes an output",
            fix="wait for it, or choose another --output",
        )


def _clear(path: Path, identity: Mapping[str, str]) -> dict[str, int]:
    """Remove all but the finished shards of this very merge, and return those."""
    finished = _read_progress(path, identity)
    for file in path.iterdir():
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        elif file.name not in finished and file.name != _PROGRESS:
            file.unlink()
    if not finished:
        (path / _PROGRESS).unlink(missing_ok=True)
    return finished


def _read_progress(path: Path, identity: Mapping[str, str]) -> dict[str, int]:
    try:
        content = json.loads((path / _PROGRESS).read_text(encoding="utf-8"))
        if content["identity"] != dict(identity):
            return {}
        shards: dict[str, int] = content["shards"]
        return {
            name: size
            for name, size in shards.items()
            if (path / name).is_file() and (path / name).stat().st_size == size
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
