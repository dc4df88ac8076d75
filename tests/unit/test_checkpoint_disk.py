"""A disk that is full, read-only or gone, while checkpoints are written."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.numpy import save_file

from tests.checkpoint_files import fill, make_checkpoint
from tests.commands import read_json
from trainer.checkpoints.commit import (
    begin,
    clear_leftovers,
    commit,
    discard,
    explaining_writes,
    prune,
)
from trainer.checkpoints.folder import LATEST, list_checkpoints
from trainer.checkpoints.manifest import find_problem, newest_valid
from trainer.errors import EnvironmentProblem
from trainer.run_directory import write_json, write_last_word


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _write_checkpoint(folder: Path, step: int, size_bytes: int = 0) -> None:
    """Write as training does: tensors through safetensors, the rest through Python."""
    temporary = begin(folder, step)
    try:
        with explaining_writes(folder):
            fill(temporary, step)
            tensors = {"weight": numpy.zeros(size_bytes, numpy.uint8)}
            save_file(tensors, temporary / "optimizer.safetensors")
        commit(temporary, folder, step)
    except BaseException:
        discard(temporary)
        raise


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs the mount command")
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_costs_only_the_new_checkpoint(small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    _write_checkpoint(folder, 1)
    with pytest.raises(EnvironmentProblem, match="No space left on device") as caught:
        _write_checkpoint(folder, 2, size_bytes=2**20)
    assert caught.value.exit_code == 3
    assert str(folder) in caught.value.what
    assert "untouched" in caught.value.rule
    assert "keep_last" in caught.value.fix
    assert _names(folder) == {"step-000001", LATEST}
    assert find_problem(folder / "step-000001") is None

    # Room for the files, none for the manifest.
    temporary = begin(folder, 2)
    fill(temporary, 2)
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    with pytest.raises(EnvironmentProblem, match=r"No space left on device"):
        commit(temporary, folder, 2)
    assert _names(folder) == {"step-000001", LATEST}
    (small_disk / "filler").unlink()
    _write_checkpoint(folder, 2)
    assert newest_valid(folder).skipped == ()
    assert [checkpoint.step for checkpoint in list_checkpoints(folder)] == [2, 1]


def test_a_full_disk_is_told_when_torch_writes_by_itself(small_disk: Path) -> None:
    temporary = begin(small_disk, 1)
    with pytest.raises(EnvironmentProblem, match="no space is left"), explaining_writes(small_disk):
        torch.save({"weight": torch.zeros(2**20)}, temporary / "optim_states.pt")
    with pytest.raises(RuntimeError, match="size"), explaining_writes(small_disk):
        torch.zeros(2) @ torch.zeros(3)  # no matter of a disk


def test_a_last_word_finds_room_on_a_full_disk(small_disk: Path) -> None:
    status = small_disk / "status.json"
    write_json(status, {"state": "running"})
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    with pytest.raises(OSError, match="No space left on device"):
        write_json(status, {"state": "failed"})
    write_last_word(status, {"state": "failed", "message": "no space left"})
    assert read_json(status) == {"state": "failed", "message": "no space left"}
    write_last_word(status, {"state": "failed"})
    with pytest.raises(OSError, match="No space left on device"):
        write_last_word(status, {"message": "x" * 5000})
    assert read_json(status) == {"state": "failed"}
    assert _names(small_disk) == {"status.json", "filler"}


def test_a_read_only_disk_is_an_environment_problem(small_disk: Path) -> None:
    make_checkpoint(small_disk, 1)
    newest = make_checkpoint(small_disk, 2)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(EnvironmentProblem, match="Read-only file system"):
        begin(small_disk, 3)
    assert newest_valid(small_disk).found == newest
    assert len(prune(small_disk, keep_last=1, keep=(), newest=newest).problems) == 1
    assert clear_leftovers(small_disk) == []


def test_a_folder_without_permission_is_an_environment_problem(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 1)
    tmp_path.chmod(0o555)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(EnvironmentProblem, match="Permission denied"):
            begin(tmp_path, 2)
    finally:
        tmp_path.chmod(0o755)


def test_a_folder_deleted_meanwhile_is_an_environment_problem(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    temporary = begin(folder, 1)
    fill(temporary, 1)
    discard(folder)
    with pytest.raises(EnvironmentProblem, match="No such file or directory"):
        commit(temporary, folder, 1)
    with (
        pytest.raises(EnvironmentProblem, match="No such file or directory"),
        explaining_writes(folder),
    ):
        save_file({"weight": numpy.zeros(1)}, temporary / "optimizer.safetensors")
    make_checkpoint(folder, 2)
    assert [checkpoint.step for checkpoint in list_checkpoints(folder)] == [2]
