"""`rankzero checkpoints`: what it shows, how it ends, what it removes and what never."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result

from launcher.cli import rankzero
from tests.checkpoint_files import FILES, flip_a_bit, make_checkpoint, truncate
from trainer.checkpoints.commit import begin
from trainer.checkpoints.folder import list_checkpoints
from trainer.config import load_config, to_json


def _invoke(run: Path, *options: str) -> Result:
    return CliRunner().invoke(rankzero, ["checkpoints", str(run), *options], env={"COLUMNS": "160"})


def _steps(run: Path) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(run / "checkpoints")]


def _run(folder: Path, *steps: int, best_step: int | None = None) -> Path:
    run = folder / "my run"
    for step in steps:
        make_checkpoint(run / "checkpoints", step, best_step=best_step)
    return run


def _keep_last(run: Path, count: int) -> None:
    given = run / "given.yaml"
    values = {
        "model": {"name": "m"},
        "data": {"train": "rows.jsonl"},
        "checkpoint": {"keep_last": count},
        "output_dir": str(run),
    }
    given.write_text(json.dumps(values), encoding="utf-8")
    (run / "resolved.json").write_text(to_json(load_config(given)), encoding="utf-8")


def _status(run: Path, **status: Any) -> None:
    (run / "status.json").write_text(json.dumps(status), encoding="utf-8")


def test_the_list_says_what_each_checkpoint_is(tmp_path: Path) -> None:
    run = _run(tmp_path, 100, 200, best_step=100)
    printed = _invoke(run)
    assert printed.exit_code == 0, printed.output
    heading, newest, oldest = printed.stdout.splitlines()
    assert heading.split() == ["step", "epoch", "size", "saved", "by", "marks", "state"]
    assert newest.split()[:2] == ["200", "1.25"]
    assert "zero2, 2 ranks" in newest
    assert "latest" in newest
    assert "not verified" in newest
    assert oldest.split()[0] == "100"
    assert "best" in oldest
    assert "latest" not in oldest


def test_json_is_on_stdout(tmp_path: Path) -> None:
    run = _run(tmp_path, 1, 2, best_step=1)
    printed = json.loads(_invoke(run, "--verify", "--json").stdout)
    assert printed["resume_step"] == 2
    newest, oldest = printed["checkpoints"]
    files = [path for path in Path(newest["path"]).rglob("*") if path.is_file()]
    assert len(files) == len(FILES) + 2
    assert newest == {
        "step": 2,
        "path": str(run / "checkpoints" / "step-000002"),
        "size_bytes": sum(path.stat().st_size for path in files),
        "verdict": "valid",
        "problem": None,
        "marks": ["latest"],
        "epoch": 1.25,
        "tokens": 1000,
        "saved": 1_700_000_000.0,
        "kind": "portable",
        "engine": "zero2",
        "world_size": 2,
    }
    assert oldest["marks"] == ["best"]


def test_verify_ends_with_3_and_says_which_one_a_resume_takes(tmp_path: Path) -> None:
    run = _run(tmp_path, 1, 2, 3)
    assert _invoke(run, "--verify").exit_code == 0
    flip_a_bit(run / "checkpoints" / "step-000003" / "adapter_model.safetensors")
    assert _invoke(run).exit_code == 0  # no hash is computed unasked
    verified = _invoke(run, "--verify")
    assert verified.exit_code == 3
    assert "SHA-256 differs" in verified.stdout
    assert verified.stdout.count("valid") == 2
    assert "1 of 3 checkpoints cannot be used (step-000003)" in verified.stderr
    assert "go on from step-000002" in verified.stderr
    for step in (1, 2):
        truncate(run / "checkpoints" / f"step-00000{step}" / "contract.json")
    quick = _invoke(run)
    assert quick.exit_code == 0
    assert quick.stdout.count("contract.json has 12 bytes, the manifest says 13") == 2
    verified = _invoke(run, "--verify", "--json")
    assert verified.exit_code == 3
    assert json.loads(verified.stdout)["resume_step"] is None
    assert "none is left" in verified.stderr


@pytest.mark.parametrize(
    "content", ["", "{}", '{"format": 1, "saved": 1e99}', '{"format": 9}', "[]", "3"]
)
def test_a_state_that_cannot_be_read_leaves_its_columns_empty(tmp_path: Path, content: str) -> None:
    run = _run(tmp_path, 1)
    (run / "checkpoints" / "step-000001" / "state.json").write_text(content)
    printed = _invoke(run)
    assert printed.exit_code == 0, printed.output
    assert printed.stdout.splitlines()[1].split()[:2] == ["1", "-"]
    row = json.loads(_invoke(run, "--json").stdout)["checkpoints"][0]
    assert (row["epoch"], row["engine"], row["verdict"]) == (None, None, "broken")


def test_nonsense_in_a_state_is_no_crash(tmp_path: Path) -> None:
    run = _run(tmp_path, 1)
    path = run / "checkpoints" / "step-000001" / "state.json"
    good = json.loads(path.read_text())
    for nonsense in ({"saved": 1e99}, {"saved": "now"}, {"epoch": "x"}, {"epoch": None}):
        path.write_text(json.dumps({**good, **nonsense}))
        assert _invoke(run).exit_code == 0


@pytest.mark.parametrize("options", [(), ("--verify",), ("--prune",), ("--json",)])
def test_what_holds_no_checkpoint_ends_with_2(tmp_path: Path, options: tuple[str, ...]) -> None:
    missing = _invoke(tmp_path / "none", *options)
    assert missing.exit_code == 2
    assert "no such folder" in missing.stderr
    assert not (tmp_path / "none").exists()
    (tmp_path / "metrics.jsonl").write_text("")
    started = _invoke(tmp_path, *options)
    assert started.exit_code == 2
    assert "no checkpoint" in started.stderr
    assert "fix:" in started.stderr
    assert _invoke(tmp_path / "metrics.jsonl", *options).exit_code in (2, 3)


def test_prune_keeps_what_the_config_says_and_the_best(tmp_path: Path) -> None:
    run = _run(tmp_path, 1, 2, 3, 4, 5, best_step=2)
    _keep_last(run, 2)
    begin(run / "checkpoints", 6)
    pruned = _invoke(run, "--prune")
    assert pruned.exit_code == 0, pruned.output
    assert pruned.stdout.splitlines()[-1] == "removed: 1, 3"
    assert _steps(run) == [5, 4, 2]
    assert {path.name for path in (run / "checkpoints").iterdir() if path.is_dir()} == {
        *("step-000002", "step-000004", "step-000005", "latest")
    }
    again = json.loads(_invoke(run, "--prune", "--json").stdout)
    assert again["removed_steps"] == []
    assert [row["step"] for row in again["checkpoints"]] == [5, 4, 2]


def test_prune_without_a_config_keeps_the_default_and_removes_damaged_ones(tmp_path: Path) -> None:
    run = _run(tmp_path, 1, 2, 3, 4, 5)
    flip_a_bit(run / "checkpoints" / "step-000005" / "contract.json")
    assert _invoke(run, "--prune").exit_code == 0
    assert _steps(run) == [4, 3, 2]
    assert (run / "checkpoints" / "latest").resolve().name == "step-000004"


def test_prune_removes_nothing_when_none_is_valid(tmp_path: Path) -> None:
    run = _run(tmp_path, 1, 2, 3, 4, 5)
    for step in range(1, 6):
        truncate(run / "checkpoints" / f"step-00000{step}" / "contract.json")
    pruned = _invoke(run, "--prune")
    assert pruned.exit_code == 3
    assert "none was removed" in pruned.stderr
    assert _steps(run) == [5, 4, 3, 2, 1]


def test_prune_with_a_damaged_config_removes_nothing(tmp_path: Path) -> None:
    run = _run(tmp_path, 1, 2, 3, 4, 5)
    (run / "resolved.json").write_text('{"checkpoint": ')
    assert _invoke(run, "--prune").exit_code == 2
    assert _steps(run) == [5, 4, 3, 2, 1]


def test_prune_waits_for_a_run_in_progress(tmp_path: Path) -> None:
    run = _run(tmp_path, 1, 2, 3, 4, 5)
    temporary = begin(run / "checkpoints", 6)
    here = socket.gethostname()
    process = {"pid": os.getpid(), "created": psutil.Process().create_time()}
    _status(run, state="running", host=here, **process)
    refused = _invoke(run, "--prune")
    assert refused.exit_code == 2
    assert f"in progress (process {os.getpid()})" in refused.stderr
    assert _steps(run) == [5, 4, 3, 2, 1]
    assert _invoke(run).exit_code == 0  # looking is free

    # From here nobody can see whether it goes on: what it may be writing stays.
    _status(run, state="running", host="another", pid=1)
    elsewhere = _invoke(run, "--prune")
    assert elsewhere.exit_code == 0
    assert "another machine" in elsewhere.stderr
    assert _steps(run) == [5, 4, 3]
    assert temporary.is_dir()

    _status(run, state="running", host=here, pid=os.getpid(), created=0.0)  # one before us
    assert _invoke(run, "--prune").exit_code == 0
    assert not temporary.exists()
