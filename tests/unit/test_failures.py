"""What a failure is called, and what is written about it."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from trainer.errors import (
    ConfigError,
    EnvironmentProblem,
    Interrupted,
    OutOfMemory,
    RankZeroError,
    TrainingFailed,
)
from trainer.failures import explained
from trainer.run_directory import RunDirectory
from trainer.status import write_failed, write_running
from trainer.world import World


def disk_full_under_torch() -> RuntimeError:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "step.pt")
        except OSError as full:
            raise RuntimeError("unexpected pos 64 vs 0") from full
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (disk_full_under_torch(), EnvironmentProblem),
        (PermissionError(errno.EACCES, "no", "x"), EnvironmentProblem),
        (ConfigError("as it is"), ConfigError),
    ],
)
def test_known_failures_get_their_class_and_a_fix(error: BaseException, kind: type) -> None:
    known = explained(error)
    assert type(known) is kind
    assert isinstance(known, RankZeroError)
    assert known is error or known.fix


def test_a_bug_stays_what_it_is() -> None:
    error = KeyError("bug")
    assert explained(error) is error


def test_the_first_rank_to_fail_is_the_one_recorded(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_running(run)
    write_failed(run, World(3, 4, 3), TrainingFailed("the cause", fix="do this"))
    write_failed(run, World(0, 4, 0), TrainingFailed("a consequence"))
    status = json.loads(run.status.read_text())
    assert (status["rank"], status["message"], status["remedy"]) == (3, "the cause", "do this")
    assert status["exit_code"] == 4


@pytest.mark.parametrize("error", [TrainingFailed("x"), Interrupted("stopped by SIGTERM")])
def test_a_directory_is_free_again_when_nothing_was_trained(
    error: RankZeroError, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.claim(resume="never")
    write_running(run)
    with pytest.raises(ConfigError, match="is in progress"):
        run.claim(resume="never")  # its process, this one, is alive
    write_failed(run, World(), error)
    run.claim(resume="never")
    run.metrics.write_text("{}")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is there"):
        run.claim(resume="never")
