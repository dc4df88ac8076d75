"""How a checkpoint comes to be, and goes: by rename, so that it is whole or not there.

    .step-000100.<id>.partial   being written, or what a kill left of that
    .step-000100.<id>.old       set aside while a new one takes its name
    .step-000100.<id>.pruned    on its way out

Source: rename(2) is atomic on POSIX file systems; what was not fsynced before it may still be lost
with the power.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from trainer.checkpoints.folder import (
    LATEST,
    Checkpoint,
    checkpoint_name,
    list_checkpoints,
    list_paths,
    read_latest,
    write_latest,
)
from trainer.checkpoints.manifest import find_problem, is_damaged, write_manifest
from trainer.durable import sync
from trainer.errors import EnvironmentProblem

_LEFTOVER = re.compile(
    r"\.(?P<name>step-[0-9]{6,})\.[0-9a-f]{32}\.(?P<kind>partial|old|pruned)"
    rf"|\.{LATEST}\.[0-9a-f]{{32}}"
)


@dataclass(frozen=True)
class Pruned:
    """The steps whose checkpoints went, and a sentence for each that would not go."""

    steps: tuple[int, ...]
    problems: tuple[str, ...]


def begin(folder: Path, step: int) -> Path:
    """Create the folder to write a checkpoint into; `commit` or `discard` it afterwards.

    Ranks: rank 0 only.
    Raises: EnvironmentProblem.
    """
    temporary = _hidden(folder, step, "partial")
    is_new = not folder.exists()
    with explaining_writes(folder):
        temporary.mkdir(parents=True)
        if is_new:
            sync(folder.parent)
    return temporary


def discard(temporary: Path) -> None:
    """Remove what `begin` made, as far as that is possible: it may not exist any more."""
    shutil.rmtree(temporary, ignore_errors=True)


def commit(temporary: Path, folder: Path, step: int) -> Checkpoint:
    """Make a written checkpoint the valid one of its step, and the latest.

    On any error the temporary folder is removed; a checkpoint of the same step stays.

    Ranks: rank 0 only.
    Raises: EnvironmentProblem.
    """
    checkpoint = Checkpoint(folder / checkpoint_name(step), step)
    replaced = _hidden(folder, step, "old")
    try:
        with explaining_writes(folder):
            write_manifest(temporary)
            _give_usual_permissions(temporary)
            _sync_tree(temporary)
            _publish(temporary, checkpoint.path, replaced)
            sync(folder)
    except BaseException:
        discard(temporary)
        raise
    with contextlib.suppress(OSError):  # the checkpoint is there, and nothing depends on the link
        write_latest(checkpoint)
    _delete(replaced)  # what stays is told, and tried again, by `clear_leftovers`
    return checkpoint


def prune(folder: Path, *, keep_last: int, keep: Collection[int], newest: Checkpoint) -> Pruned:
    """Remove the checkpoints that a run no longer needs.

    Kept: `newest`, the last `keep_last` up to it that look whole, the steps of `keep`, and a
    valid one with a higher step, which belongs to a run that went further. Damaged ones go. One
    that cannot be read stays: it may be whole.

    Ranks: rank 0 only.
    """
    listed = list_checkpoints(folder)
    # Going on from `newest` passed over those above it; these few are looked at in full.
    damaged = {
        other.step for other in listed if is_damaged(other.path, hashed=other.step > newest.step)
    }
    usable = [c.step for c in listed if c.step not in damaged]
    recent = [step for step in usable if step < newest.step][: keep_last - 1]
    kept = {newest.step, *keep, *recent, *(step for step in usable if step > newest.step)}
    unwanted = [checkpoint for checkpoint in listed if checkpoint.step not in kept]
    gone, problems = [], []
    for checkpoint in reversed(unwanted):
        problem = _remove(checkpoint)
        if problem is not None:
            problems.append(problem)
        if not checkpoint.path.exists():
            gone.append(checkpoint)
    if read_latest(folder) in {checkpoint.path.name for checkpoint in gone}:
        with contextlib.suppress(OSError):
            write_latest(newest)
    return Pruned(tuple(checkpoint.step for checkpoint in gone), tuple(problems))


def clear_leftovers(folder: Path) -> list[str]:
    """Remove what interrupted writers left; put back a checkpoint that was being replaced.

    Returns a sentence for each checkpoint put back, and for each leftover that would not go.

    Ranks: rank 0 only, while no other process writes here.
    """
    notes: list[str] = []
    for path in list_paths(folder):
        leftover = _LEFTOVER.fullmatch(path.name)
        if leftover is None:
            continue
        final = folder / leftover["name"] if leftover["kind"] == "old" else None
        if final is not None and not os.path.lexists(final) and find_problem(path) is None:
            notes.append(_put_back(path, final))
        elif (problem := _delete(path)) is not None:
            notes.append(problem)
    return notes


@contextmanager
def explaining_writes(folder: Path) -> Iterator[None]:
    """Turn a failed write of a checkpoint into the error a user can act on.

    Raises: EnvironmentProblem.
    """
    try:
        yield
    except OSError as error:
        raise _refused(folder, error.errno, error.strerror or str(error), error.filename) from error
    except SafetensorError as error:
        # It has no errno. Source: safetensors 0.8 passes on the text of Rust's std::io::Error.
        told = re.search(r'\(os error (\d+)\)(?: at path "(.*)")?', str(error))
        if told is None:
            raise
        code = int(told[1])
        raise _refused(folder, code, os.strerror(code), told[2]) from error
    except RuntimeError as error:
        # Nor has what torch.save raises, when it opened the file itself, as DeepSpeed lets it.
        if not any(text in str(error) for text in _TORCH_CANNOT_WRITE):
            raise
        raise _refused(folder, errno.ENOSPC, "most likely no space is left", None) from error


_TORCH_CANNOT_WRITE = ("inline_container.cc", "PytorchStreamWriter failed", "iostream error")
"""Source: caffe2/serialize/inline_container.cc, torch 2.13."""
_FIXES = {
    (errno.ENOSPC, errno.EDQUOT): "free space or lower checkpoint.keep_last",
    (errno.EACCES, errno.EPERM, errno.EROFS): "let this user write to the folder",
}


def _refused(
    folder: Path, code: int | None, reason: str, path: str | Path | None
) -> EnvironmentProblem:
    where = f" ({path})" if path is not None else ""
    fix = next((fix for codes, fix in _FIXES.items() if code in codes), "check the disk")
    return EnvironmentProblem(
        f"a checkpoint cannot be written to {folder}: {reason}{where}",
        rule="a checkpoint is written whole or not at all; those already there are untouched",
        fix=f"{fix}, then start the run again: it goes on from the newest valid checkpoint",
    )


def _hidden(folder: Path, step: int, kind: str) -> Path:
    return folder / f".{checkpoint_name(step)}.{uuid.uuid4().hex}.{kind}"


def _give_usual_permissions(temporary: Path) -> None:
    """Let files be as readable as the folder is; safetensors hides its own from other users.

    A container of the next attempt may run as another user.
    """
    mode = temporary.stat().st_mode & 0o666  # what the umask leaves
    for path in temporary.rglob("*"):
        # Some mounted file systems know no permissions, and refuse.
        with contextlib.suppress(PermissionError, NotImplementedError):
            if path.is_file():
                path.chmod(mode)


def _publish(temporary: Path, final: Path, replaced: Path) -> None:
    try:
        if os.path.lexists(final):
            final.rename(replaced)
        temporary.rename(final)
    except BaseException:
        if os.path.lexists(replaced) and not os.path.lexists(final):
            replaced.rename(final)
        raise


def _put_back(path: Path, final: Path) -> str:
    try:
        path.rename(final)
    except OSError as error:
        return f"{path} is a valid {final.name} and cannot be renamed to it: {error.strerror}"
    return f"{final.name} is back: replacing it was interrupted"


def _remove(checkpoint: Checkpoint) -> str | None:
    # Deleting takes time, and a half-deleted folder must not be listed.
    aside = _hidden(checkpoint.path.parent, checkpoint.step, "pruned")
    try:
        checkpoint.path.rename(aside)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{checkpoint.path} cannot be removed: {error.strerror}"
    return _delete(aside)


def _delete(path: Path) -> str | None:
    """Delete a file, a link or a folder; return why that failed."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"{path} cannot be removed: {error.strerror} ({error.filename})"
    return None


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
