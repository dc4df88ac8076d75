"""Which checkpoints there are, in which order, and which of them are valid."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoint_files import FILES, flip_a_bit, make_checkpoint, truncate
from trainer.checkpoints.commit import begin, clear_leftovers, prune
from trainer.checkpoints.folder import list_checkpoints, read_latest
from trainer.checkpoints.manifest import find_problem, newest_valid
from trainer.errors import EnvironmentProblem


@pytest.mark.parametrize("name", [*FILES, "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_any_damage_is_named_and_the_one_before_is_taken(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    before, newest = make_checkpoint(tmp_path, 1), make_checkpoint(tmp_path, 2)
    assert newest_valid(tmp_path).found == newest
    damage(newest.path / name)
    search = newest_valid(tmp_path)
    assert search.found == before
    ((skipped, problem),) = search.skipped
    assert skipped == newest
    if name != "manifest.json":
        assert problem.startswith(name)


def test_every_single_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 1).path
    path = checkpoint / "manifest.json"
    content = path.read_bytes()
    missed = []
    for position in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        if find_problem(checkpoint) is None:
            missed.append(position)
    assert missed == []


def test_a_problem_is_told_with_its_numbers(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 1).path
    truncate(checkpoint / "adapter_model.safetensors")
    told = "adapter_model.safetensors has 767 bytes, the manifest says 768"
    assert find_problem(checkpoint) == find_problem(checkpoint, hashed=False) == told
    checkpoint = make_checkpoint(tmp_path, 1).path
    flip_a_bit(checkpoint / "adapter_model.safetensors")
    assert find_problem(checkpoint, hashed=False) is None
    assert "SHA-256 differs" in (find_problem(checkpoint) or "")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": 1, "files": []}',
        '{"format": 1, "files": {"name": 1}}',
        '{"format": 2, "files": [{"name": "a", "size_bytes": 1, "sha256": ""}]}',
        '{"format": 1, "files": [{"name": "\\u0000", "size_bytes": 1, "sha256": ""}]}',
        '{"format": 1, "files": [{"name": "\\ud800", "size_bytes": 1, "sha256": ""}]}',
        '{"format": 1, "files": [{"name": "", "size_bytes": 1, "sha256": ""}]}',
        '{"format": 1, "files": [{"name": 3, "size_bytes": 1, "sha256": ""}]}',
        "[" * 100_000,
    ],
)
def test_what_is_no_manifest_is_a_problem_and_not_a_crash(tmp_path: Path, content: str) -> None:
    checkpoint = make_checkpoint(tmp_path, 1).path
    (checkpoint / "manifest.json").write_text(content, encoding="utf-8")
    assert find_problem(checkpoint) is not None


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside", "sharded/../../outside"])
def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    checkpoint = make_checkpoint(tmp_path, 1).path
    (tmp_path / "outside").write_text("")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][0]["name"] = name
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert "outside of the checkpoint" in (find_problem(checkpoint) or "")


def test_a_file_that_cannot_be_read_is_a_problem_but_nothing_to_delete_for(tmp_path: Path) -> None:
    unreadable, newest = make_checkpoint(tmp_path, 1), make_checkpoint(tmp_path, 2)
    loop = unreadable.path / "contract.json"
    loop.unlink()
    loop.symlink_to(loop)  # ELOOP, for every user
    assert "cannot be read" in (find_problem(unreadable.path) or "")
    assert prune(tmp_path, keep_last=2, keep=(), newest=newest).steps == ()


def test_files_that_came_later_do_no_harm(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 1).path
    (checkpoint / "notes.txt").write_text("mine")
    assert find_problem(checkpoint) is None


def test_only_checkpoints_are_listed_by_step_whatever_the_clock_says(tmp_path: Path) -> None:
    for step, modified in ((5, 3e9), (20, 1e9), (1_000_000, 0.0), (999_999, 2e9)):
        path = make_checkpoint(tmp_path, step).path
        for file in (*path.iterdir(), path):
            os.utime(file, (modified, modified))
    begin(tmp_path, 7)
    for name in (
        "step-12",
        "step-0000012",
        "step-x",
        "other",
        "step-000001.old",
        "step-\u0660\u0660\u0660\u0660\u0660\u0661",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000002").write_text("a file")
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [
        1_000_000,
        999_999,
        20,
        5,
    ]
    found = newest_valid(tmp_path).found
    assert found is not None
    assert found.step == 1_000_000
    # Written out of order too: the newest is the one that was committed last.
    assert read_latest(tmp_path) == "step-999999"
    assert prune(tmp_path, keep_last=2, keep=(), newest=found).steps == (5, 20)


def test_no_folder_holds_no_checkpoint(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "none").found is None
    assert clear_leftovers(tmp_path / "none") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be listed"):
        list_checkpoints(tmp_path / "file")
