"""Where an attempt begins: the newest valid checkpoint, a named one, or nowhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from trainer.checkpoints.commit import begin, commit
from trainer.checkpoints.resume import AUTO, NEVER, bring_in, check_named, find_start
from trainer.checkpoints.state import RunState, write_state
from trainer.errors import ConfigError, EnvironmentProblem
from trainer.requirements import measured_figures
from trainer.run_directory import RunDirectory, append_line, keep_lines, read_lines, write_json

CONTRACT: dict[str, Any] = {
    "data_fingerprint": "f",
    "num_examples": 1,
    "chat_template": "c",
    "base_model": {"name": "tiny", "digest": "b"},
    "global_batch_size": 8,
    "num_steps": 100,
    "warmup_steps": 0,
    "settings": {"seed": 1},
    "versions": {},
}


def make_run(path: Path, steps: tuple[int, ...], *, best: int | None = None) -> RunDirectory:
    """Make a run with checkpoints of these steps."""
    run = RunDirectory(path)
    path.mkdir(parents=True, exist_ok=True)
    write_json(run.contract, CONTRACT)
    for step in steps:
        temporary = begin(run.checkpoints, step)
        state = RunState(
            kind="portable",
            step=step,
            epoch=0.5,
            tokens=1,
            training_seconds=1.0,
            loss_total=1.0,
            last_logged_step=step,
            scheduler_steps=step,
            loss_scale=None,
            evaluation_pending=False,
            best_step=best if best is not None and best <= step else None,
            callbacks={"BestModelCallback": {"best_step": best, "best_loss": 1.0}},
            world_size=1,
            engine="one process",
            precision="fp32",
            saved=0.0,
        )
        write_state(temporary, state)
        write_json(temporary / "contract.json", CONTRACT)
        (temporary / "adapter_model.safetensors").write_bytes(bytes([step]) * 100)
        commit(temporary, run.checkpoints, step)
    return run


def damage(run: RunDirectory, step: int) -> None:
    (run.checkpoints / f"step-{step:06d}" / "adapter_model.safetensors").write_bytes(b"")


def start_of(run: RunDirectory, resume: str = AUTO, **changes: Any) -> Any:
    return find_start(resume, run, {**CONTRACT, **changes}, allow_changes=False)


def test_a_new_run_begins_at_the_beginning(tmp_path: Path) -> None:
    start = start_of(RunDirectory(tmp_path / "new"))
    assert (start.checkpoint, start.step) == (None, 0)


def test_the_newest_valid_one_is_taken_and_the_others_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", (10, 20, 30))
    damage(run, 30)
    start = start_of(run)
    assert start.step == 20
    assert "skipped step-000030: adapter_model.safetensors has 0 bytes" in start.notes[0]
    assert "step 20" in start.notes[-1]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", (10, 20))
    damage(run, 10)
    damage(run, 20)
    with pytest.raises(EnvironmentProblem, match="none of the 2 checkpoints") as refused:
        start_of(run)
    assert "step-000010" in str(refused.value)
    assert "step-000020" in str(refused.value)


def test_never_begins_at_the_beginning(tmp_path: Path) -> None:
    assert start_of(make_run(tmp_path / "run", (10,)), NEVER).step == 0


def test_another_run_is_refused_also_before_its_first_checkpoint(tmp_path: Path) -> None:
    for steps in ((10,), ()):
        run = make_run(tmp_path / f"run{len(steps)}", steps)
        with pytest.raises(ConfigError, match="seed: 1 then, 2 now") as refused:
            start_of(run, settings={"seed": 2})
        # Only a directory in which nothing was trained may be begun in anew.
        assert ("--resume never" in refused.value.fix) == (not steps)


def test_a_best_checkpoint_that_is_gone_is_sought_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", (10, 20), best=10)
    assert start_of(run).state.best_step == 10
    shutil.rmtree(run.checkpoints / "step-000010")
    start = start_of(run)
    assert start.step == 20
    assert start.state.best_step is None
    assert "BestModelCallback" not in start.state.callbacks
    assert any("step-000010, the best so far, is not usable" in note for note in start.notes)


def test_a_named_checkpoint_or_run_is_brought_in_with_its_best(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", (10, 20), best=10)
    for named in (old.path, old.checkpoints / "step-000020", old.checkpoints / "latest"):
        new = RunDirectory(tmp_path / f"new-{named.name}")
        start = bring_in(start_of(new, str(named)), new)
        assert start.step == 20
        assert start.checkpoint == new.checkpoints / "step-000020"
        weights = new.checkpoints / "step-000010" / "adapter_model.safetensors"
        assert weights.read_bytes() == bytes([10]) * 100
        assert start_of(new).step == 20  # it is a run of its own now


def test_a_named_checkpoint_is_missed_before_anything_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", (10,))
    for resume in (AUTO, NEVER, str(run.path), str(run.checkpoints / "step-000010")):
        check_named(resume)
    for named in (tmp_path / "absent", tmp_path, run.checkpoints):
        with pytest.raises(ConfigError, match="there is no checkpoint"):
            check_named(str(named))


def test_a_named_checkpoint_must_be_one_and_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", (10,))
    with pytest.raises(ConfigError, match="there is no checkpoint"):
        start_of(run, str(tmp_path / "absent"))
    damage(run, 10)
    with pytest.raises(EnvironmentProblem, match="has 0 bytes"):
        start_of(RunDirectory(tmp_path / "new"), str(run.checkpoints / "step-000010"))


def test_going_back_in_a_run_is_refused_unless_what_follows_is_damaged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", (10, 20))
    with pytest.raises(ConfigError, match="has gone on to step-000020"):
        start_of(run, str(run.checkpoints / "step-000010"))
    damage(run, 20)
    assert start_of(run, str(run.checkpoints / "step-000010")).step == 10


def test_the_same_resume_again_goes_on_from_where_it_came_to(tmp_path: Path) -> None:
    old, new = make_run(tmp_path / "old", (10,)), make_run(tmp_path / "new", (10, 20))
    assert start_of(new, str(old.path)).step == 20


def test_a_renamed_copy_is_brought_in_itself(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", (10,))
    copy = shutil.copytree(old.checkpoints / "step-000010", tmp_path / "backup" / "good")
    (tmp_path / "backup" / "step-000010").mkdir()
    new = RunDirectory(tmp_path / "new")
    bring_in(start_of(new, str(copy)), new)
    weights = new.checkpoints / "step-000010" / "adapter_model.safetensors"
    assert weights.read_bytes() == bytes([10]) * 100


def test_results_without_checkpoints_are_not_begun_over(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", (10,))
    run.adapter.mkdir()
    shutil.rmtree(run.checkpoints)
    with pytest.raises(ConfigError, match="holds adapter and no checkpoint"):
        start_of(run)


def test_lines_of_repeated_steps_are_told_from_those_that_stay(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"step": 0, "eval_loss": 3.0},
        {"step": 10, "loss": 2.0},
        {"step": 10, "eval_loss": 2.0},
        {"step": 10, "train_runtime": 1.0, "train_loss": 2.0},
        {"step": 10, "eval_loss": 2.0},
        {"step": 10, "test_loss": 2.0},
        {"step": 11, "loss": 1.0},
    ]
    start = start_of(make_run(tmp_path / "run", (10,)))
    assert list(start.logged(lines)) == [True, True, True, False, False, False, False]
    assert not any(start_of(RunDirectory(tmp_path / "new")).logged(lines))


def test_answers_and_advice_of_repeated_steps_are_given_anew(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"step": 0, "quality": 0.1},
        {"step": 10, "name": "overfitting"},
        {"step": 10, "name": "converged"},
        {"step": 10, "quality": 0.2},
        {"step": 10, "quality": 0.3},
        {"step": 11, "quality": 0.4},
    ]
    start = start_of(make_run(tmp_path / "run", (10,)))
    assert list(start.measured(lines)) == [True, True, True, True, False, False]
    assert not any(start_of(RunDirectory(tmp_path / "new")).measured(lines))


def test_an_answer_with_odd_line_separators_is_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", (10,))
    line = {"step": 10, "compliance_rate": 0.5, "checks": [{"answer": "a\u2028b\x85c\nd"}]}
    append_line(run.safety, line)
    with run.safety.open("a", encoding="utf-8") as file:
        file.write('{"step": 11, "compl')  # a kill
    assert read_lines(run.safety) == [line]
    keep_lines(run.safety, start_of(run).measured)
    assert read_lines(run.safety) == [line]
    assert measured_figures(run, run.checkpoints / "step-000010")["safety.compliance_rate"] == 0.5


def test_no_change_of_an_adapters_form_can_be_accepted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", (10,))
    now = {**CONTRACT, "settings": {"seed": 1, "lora.r": 4}}
    with pytest.raises(ConfigError, match=r"lora\.r"):
        find_start(AUTO, run, now, allow_changes=True)


def test_a_state_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", (10,))
    path = run.checkpoints / "step-000010" / "state.json"
    state = json.loads(path.read_text())
    temporary = begin(run.checkpoints, 20)
    shutil.copytree(path.parent, temporary, dirs_exist_ok=True)
    write_json(temporary / "state.json", {**state, "format": 99})
    commit(temporary, run.checkpoints, 20)
    with pytest.raises(EnvironmentProblem, match="format 99"):
        start_of(run)
