"""Checkpoints on disk come and go whole: no kill and no error takes one away."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoint_files import fill, flip_a_bit, make_checkpoint, truncate
from trainer.checkpoints.commit import (
    begin,
    clear_leftovers,
    commit,
    prune,
)
from trainer.checkpoints.folder import (
    LATEST,
    checkpoint_name,
    list_checkpoints,
    read_latest,
)
from trainer.checkpoints.manifest import find_problem, newest_valid
from trainer.errors import EnvironmentProblem

ROOT = Path(__file__).parents[2]


def _steps(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(folder)]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_latest_is_a_relative_link_or_a_text_where_links_are_impossible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    make_checkpoint(folder, 1)
    make_checkpoint(folder, 2)
    folder.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    assert (moved / LATEST / "state.json").is_file()
    assert read_latest(moved) == "step-000002"

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    make_checkpoint(moved, 3)
    assert (moved / LATEST).read_text() == "step-000003\n"
    assert read_latest(moved) == "step-000003"
    assert _names(moved) == {"step-000001", "step-000002", "step-000003", LATEST}


def test_files_are_as_readable_as_their_folder(tmp_path: Path) -> None:
    temporary = begin(tmp_path, 1)
    fill(temporary, 1)
    (temporary / "adapter_model.safetensors").chmod(0o600)
    temporary.chmod(0o755)
    checkpoint = commit(temporary, tmp_path, 1).path
    modes = {path.stat().st_mode & 0o777 for path in checkpoint.rglob("*") if path.is_file()}
    assert modes == {0o644}
    private = begin(tmp_path, 2)
    private.chmod(0o700)
    fill(private, 2)
    assert (commit(private, tmp_path, 2).path / "state.json").stat().st_mode & 0o777 == 0o600


def test_all_is_on_disk_before_the_name_and_the_name_before_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = begin(tmp_path, 1)
    fill(temporary, 1)
    events: list[object] = []

    def record(name: str, to_event: Callable[..., object]) -> None:
        original = getattr(os, name)

        def recorded(*arguments: object) -> None:
            events.append(to_event(*arguments))
            original(*arguments)

        monkeypatch.setattr(os, name, recorded)

    record("fsync", lambda descriptor: os.fstat(descriptor).st_ino)
    record("rename", lambda *_: "rename")
    record("replace", lambda *_: "latest")
    checkpoint = commit(temporary, tmp_path, 1).path
    written = {path.stat().st_ino for path in (checkpoint, *checkpoint.rglob("*"))}
    named = events.index("rename")
    assert set(events[:named]) == written
    assert events[named + 1 :] == [tmp_path.stat().st_ino, "latest"]


# Ends itself without warning before one more file system operation each time it is started anew.
_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.checkpoint_files import make_checkpoint
from trainer.checkpoints.commit import prune

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.chmod"}
here = str(Path(sys.argv[1]))

def work(folder, last):
    left = [last]
    def count(event, arguments):
        if event in OPERATIONS:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    make_checkpoint(folder, 2)
    newest = make_checkpoint(folder, 3)
    prune(folder, keep_last=1, keep=(), newest=newest)
    os._exit(0)

for last in range(1000):
    folder = Path(here) / f"{last:04}"
    make_checkpoint(folder, 2)
    child = os.fork()
    if child == 0:
        work(folder, last)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
"""


def test_no_kill_at_any_point_loses_a_checkpoint_or_lists_a_broken_one(tmp_path: Path) -> None:
    """Replaces the only checkpoint, adds one, removes the first: killed before every operation."""
    command = [sys.executable, "-c", _KILLED, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    *killed, done = sorted(tmp_path.iterdir())
    assert len(killed) >= 20
    reached = []
    for folder in killed:
        assert [find_problem(c.path) for c in list_checkpoints(folder)] in ([], [None], [None] * 2)
        clear_leftovers(folder)
        search = newest_valid(folder)
        assert search.found is not None, folder
        assert search.skipped == ()
        assert _names(folder) - {LATEST} == {checkpoint_name(step) for step in _steps(folder)}
        reached.append(search.found.step)
    assert reached == sorted(reached)
    assert set(reached) == {2, 3}
    assert _names(done) == {"step-000003", LATEST}


def test_an_error_while_renaming_leaves_the_replaced_one_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(tmp_path, 1)
    temporary = begin(tmp_path, 1)
    fill(temporary, 1)
    rename = Path.rename

    def fail_once(path: Path, target: Path) -> Path:
        if path == temporary:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(EnvironmentProblem, match="Input/output error"):
        commit(temporary, tmp_path, 1)
    assert _names(tmp_path) == {"step-000001", LATEST}
    assert newest_valid(tmp_path).skipped == ()


def test_leftovers_go_and_what_others_put_there_stays(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 1)
    fill(begin(tmp_path, 2), 2)
    identifier = "0" * 32
    for name in (f".step-000001.{identifier}.old", f".step-000003.{identifier}.old"):
        (tmp_path / name).mkdir()  # replaced, and broken
    (tmp_path / f".step-000004.{identifier}.pruned").mkdir()
    (tmp_path / f".{LATEST}.{identifier}").symlink_to("step-000001")
    kept = {"mine.partial", ".step-000001.old", ".step-000001.short.partial"}
    for name in kept:
        (tmp_path / name).mkdir()
    assert clear_leftovers(tmp_path) == []
    assert _names(tmp_path) == {"step-000001", LATEST, *kept}


def test_a_leftover_that_cannot_go_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = begin(tmp_path, 1)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    (note,) = clear_leftovers(tmp_path)
    assert note.startswith(f"{temporary} cannot be removed: Permission denied")


@pytest.mark.parametrize(
    ("steps", "damaged", "newest", "keep_last", "keep", "left"),
    [
        ([1, 2, 3, 4], [], 4, 2, [], [4, 3]),
        ([1, 2, 3, 4], [], 4, 1, [], [4]),
        ([1, 2, 3, 4], [], 4, 9, [], [4, 3, 2, 1]),
        ([1, 2, 3, 4], [], 4, 2, [1], [4, 3, 1]),
        ([1, 2, 3, 4], [], 4, 2, [3], [4, 3]),
        ([1, 2, 3, 4], [], 4, 1, [9], [4]),
        # After going on from 1, past 3 and 4 that were damaged, and saving 2.
        ([1, 2, 3, 4], [3, 4], 2, 2, [], [2, 1]),
        # The run that went further, and was not gone on from by choice.
        ([1, 2, 3, 4], [3], 2, 1, [], [4, 2]),
        # Damaged ones do not take the place of whole ones; the best stays whatever it is.
        ([1, 2, 3, 4], [2, 3], 4, 2, [], [4, 1]),
        ([1, 2, 3, 4], [2, 3], 4, 2, [2], [4, 2, 1]),
    ],
)
def test_prune_keeps(
    tmp_path: Path,
    steps: list[int],
    damaged: list[int],
    newest: int,
    keep_last: int,
    keep: list[int],
    left: list[int],
) -> None:
    made = {step: make_checkpoint(tmp_path, step) for step in steps}
    for step in damaged:
        # Where no hash is computed, below the newest, the size must tell.
        (flip_a_bit if step > newest else truncate)(made[step].path / "contract.json")
    pruned = prune(tmp_path, keep_last=keep_last, keep=keep, newest=made[newest])
    assert _steps(tmp_path) == left
    assert pruned.steps == tuple(step for step in steps if step not in left)
    assert pruned.problems == ()
    assert all((tmp_path / name).exists() for name in _names(tmp_path))  # `latest` too
    assert not any(name.startswith(".") for name in _names(tmp_path))


def test_prune_unlinks_a_checkpoint_kept_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    first, second = make_checkpoint(folder, 1), make_checkpoint(folder, 2)
    first.path.rename(tmp_path / "elsewhere")
    first.path.symlink_to(tmp_path / "elsewhere")
    assert prune(folder, keep_last=1, keep=(), newest=second).steps == (1,)
    assert find_problem(tmp_path / "elsewhere") is None


def test_a_checkpoint_that_cannot_be_removed_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(tmp_path, 1)
    newest = make_checkpoint(tmp_path, 2)

    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "rename", refuse)
    pruned = prune(tmp_path, keep_last=1, keep=(), newest=newest)
    assert pruned.steps == ()
    assert "step-000001 cannot be removed: Permission denied" in pruned.problems[0]
    assert _steps(tmp_path) == [2, 1]
