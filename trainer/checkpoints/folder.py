"""The checkpoints folder: which checkpoints it lists, in which order, and its link to the newest.

The order is that of the steps in the names. Times of files are never asked: copies, restores and
clocks change them.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import EnvironmentProblem

LATEST = "latest"
_NAME = re.compile(r"step-([0-9]{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as the folder lists it; whether it is valid is for `manifest` to say."""

    path: Path
    step: int


def checkpoint_name(step: int) -> str:
    return f"step-{step:06d}"


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return what has a checkpoint's name, highest step first; anything else is ignored.

    Raises: EnvironmentProblem when the folder is there and cannot be read.
    """
    paths = list_paths(folder)
    found = [Checkpoint(path, step) for path in paths if (step := _step_of(path)) is not None]
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def list_paths(folder: Path) -> list[Path]:
    """Return all that is in the folder, nothing when it does not exist.

    Raises: EnvironmentProblem when it is there and cannot be read.
    """
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EnvironmentProblem(
            f"the checkpoints in {folder} cannot be listed: {error.strerror}",
            rule="a run goes on from the newest valid checkpoint in this folder",
            fix="let this user read the folder",
        ) from error


def _step_of(path: Path) -> int | None:
    named = _NAME.fullmatch(path.name)
    if named is None or not path.is_dir():
        return None
    step = int(named[1])
    return step if path.name == checkpoint_name(step) else None


def write_latest(checkpoint: Checkpoint) -> None:
    """Let `latest` name this checkpoint: a relative link, or a text file where links do not exist.

    For people and scripts; nothing of ours depends on it.
    """
    path, name = checkpoint.path.with_name(LATEST), checkpoint.path.name
    temporary = path.with_name(f".{LATEST}.{uuid.uuid4().hex}")
    try:
        try:
            temporary.symlink_to(name)
        except (OSError, NotImplementedError):
            temporary.write_text(f"{name}\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_latest(folder: Path) -> str | None:
    """Return the name of the checkpoint that `latest` names, which may be gone by now."""
    path = folder / LATEST
    try:
        if path.is_symlink():
            return os.fspath(path.readlink())
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
