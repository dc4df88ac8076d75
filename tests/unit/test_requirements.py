"""The gate before a merge: what may be required, what counts as measured, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.conditions import Requirements, judge
from trainer.config import Config, json_schema, load_config
from trainer.errors import ConfigError, GateFailed
from trainer.main import Session
from trainer.requirements import check_requirements
from trainer.run_directory import RunDirectory
from trainer.world import World

HELD_OUT = "model: {name: m}\ndata: {train: f, validation_size: 9, test_size: 9}\n"
BOTH: Requirements = {"eval_loss": "<= 1.2", "safety.compliance_rate": ">= 0.95"}


def load(tmp_path: Path, text: str, *overrides: str) -> Config:
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    return load_config(tmp_path / "run.yaml", overrides)


@pytest.mark.parametrize(
    ("condition", "below", "equal", "above"),
    [
        ("< 1.5", True, False, False),
        ("<=1.5", True, True, False),
        ("> +15e-1", False, False, True),
        (" >=  1.5 ", False, True, True),
    ],
)
def test_a_condition_holds(condition: str, below: bool, equal: bool, above: bool) -> None:
    for measured, is_met in ((1.25, below), (1.5, equal), (1.75, above)):
        (outcome,) = judge({"eval_loss": condition}, {"eval_loss": measured, "test_loss": 0})
        assert (outcome.measured, outcome.is_met) == (measured, is_met)
    (outcome,) = judge({"eval_loss": condition}, {"test_loss": 1.5})
    assert (outcome.measured, outcome.is_met) == (None, False)


def test_requirements_are_read_from_file_and_command_line(tmp_path: Path) -> None:
    measured = f"{HELD_OUT}safety: {{enabled: true}}\n"
    written = '{eval_loss: "<= 1.2", safety.compliance_rate: ">= 0.95"}'
    assert load(tmp_path, f"{measured}merge: {{require: {written}}}\n").merge.require == BOTH
    assert load(tmp_path, measured, f"merge.require={written}").merge.require == BOTH
    block = 'merge:\n  require:\n    eval_loss: <= 1.2\n    safety.compliance_rate: ">= 0.95"\n'
    assert load(tmp_path, measured + block).merge.require == BOTH


@pytest.mark.parametrize(
    ("name", "condition", "said"),
    [
        ("eval_loss", '"== 1"', "must be one of < <= > >= and a number"),
        ("eval_loss", '"< fast"', "not the text '< fast'"),
        ("eval_loss", '"<= .nan"', "must be one of < <= > >= and a number"),
        ("eval_loss", '"< 1e999"', "must be one of < <= > >= and a number"),
        ("eval_loss", "1.2", "not 1.2"),
        ("safety.compliance_rate", '"95%"', "must be one of < <= > >= and a number"),
        ("eval_los", '"< 1"', "did you mean `eval_loss`?"),
        ("safety", "{compliance_rate: '> 1'}", "safety.compliance_rate"),
    ],
)
def test_a_wrong_requirement_names_its_line(
    tmp_path: Path, name: str, condition: str, said: str
) -> None:
    for overrides, place in (
        ((), "run.yaml:5:"),
        ((f"merge.require={{{name}: {condition}}}",), "--set:"),
    ):
        text = "" if overrides else f"merge:\n  require:\n    {name}: {condition}\n"
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, HELD_OUT + text, *overrides)
        message = str(caught.value)
        assert ": 1 problem\n" in message
        assert f"{place} `merge.require.{name}` must be" in message
        assert said in message


@pytest.mark.parametrize(
    ("data", "figure", "said"),
    [
        (
            "test_size: 9",
            "eval_loss",
            "no validation data to measure it on; give `data.val",
        ),
        ("validation_size: 9", "test_loss", "no test data to measure it on; give `data.test`"),
    ],
)
def test_a_loss_that_is_never_measured(tmp_path: Path, data: str, figure: str, said: str) -> None:
    merge = f'merge: {{require: {{train_loss: "< 9", {figure}: "< 1"}}}}'
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"model: {{name: m}}\ndata: {{train: f, {data}}}\n{merge}\n")
    assert f"run.yaml:3: `merge.require.{figure}` could never be met: there is {said}" in str(
        caught.value
    )


def test_full_fine_tuning_merges_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`merge\.require` would be ignored"):
        load(tmp_path, HELD_OUT + 'lora: false\nmerge: {require: {eval_loss: "< 1"}}\n')


def test_the_schema_tells_figures_and_conditions() -> None:
    require = json_schema()["$defs"]["MergeConfig"]["properties"]["require"]
    assert "safety.compliance_rate" in require["propertyNames"]["enum"]
    assert require["additionalProperties"]["pattern"]


def make_run(folder: Path, require: dict[str, str] | None = None) -> Path:
    """A run of 4 steps that kept the weights of step 2, its best; step 3 was saved on request."""
    adapters = {"adapter": "2", "best_model": "2", "checkpoints/step-000002": "2"}
    adapters |= {"checkpoints/step-000004": "4", "checkpoints/step-000003": "3"}
    for place, weights in adapters.items():
        (folder / place).mkdir(parents=True)
        (folder / place / "adapter_model.safetensors").write_text(weights)
    (folder / "checkpoints" / "latest").symlink_to("step-000004")
    write(folder / "resolved.json", {"merge": {"after_training": True, "require": require or {}}})
    after = {"validation": 0.25, "test": 0.5}
    write(folder / "summary.json", {"after": after, "train_loss": 3.5, "steps": 4, "best_step": 2})
    lines: list[dict[str, Any]] = [
        {"step": 0, "eval_loss": 9.0},
        {"step": 2, "loss": 2.5},
        {"step": 2, "eval_loss": 0.25},
        {"step": 4, "loss": 4.5},
        {"step": 4, "train_loss": 3.5},
        {"step": 4, "eval_loss": 0.25},  # of the best weights
    ]
    write_lines(folder / "metrics.jsonl", lines)
    return folder


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 4, "eval_lo')


ALL = {
    "eval_loss": "< 1",
    "test_loss": "< 1",
    "train_loss": "< 4",
    "safety.compliance_rate": "> 0.9",
    "safety.average_score": "> 0",
}


@pytest.mark.parametrize(
    ("adapter", "measured"),
    [
        ("adapter", [0.25, 0.5, 3.5, 0.94, 4.0]),
        ("best_model", [0.25, None, None, 0.92, None]),
        ("checkpoints/step-000002", [0.25, None, None, 0.92, None]),
        ("checkpoints/step-000003", [None, None, None, None, None]),
        ("checkpoints/latest", [None, None, None, 0.94, 4.0]),
    ],
)
def test_figures_are_those_of_the_very_weights(
    adapter: str, measured: list[float | None], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", ALL)
    checks = [
        {"step": 2, "compliance_rate": 0.92, "average_score": float("nan")},
        {"step": 4, "compliance_rate": 0.94, "average_score": 4},
        {"step": 6, "compliance_rate": 0.96, "average_score": 6},  # the run goes on
    ]
    write_lines(run / "safety.jsonl", checks)
    found = check_requirements(run / adapter, is_ignored=True)
    assert [figure["measured"] for figure in found.values()] == measured
    assert [figure["met"] for figure in found.values()] == [m is not None for m in measured]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_an_adapter_of_no_run_and_a_run_without_requirements_pass(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert check_requirements(run / "adapter") == {}
    gated = make_run(tmp_path / "gated", {"eval_loss": "< 0"})
    foreign = (gated / "adapter").rename(tmp_path / "foreign")
    assert check_requirements(foreign) == {}
    (gated / "adapter").symlink_to(foreign)  # weights kept on another disk
    with pytest.raises(GateFailed):
        check_requirements(gated / "adapter")


def test_what_does_not_hold_is_refused_with_every_figure(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a run", {"test_loss": "< 0.5"} | dict(BOTH))
    with pytest.raises(GateFailed) as caught:
        check_requirements(run / "adapter")
    message = str(caught.value)
    for line in (
        "eval_loss is 0.25, required <= 1.2: met",
        "safety.compliance_rate was not measured, required >= 0.95: NOT met",
        "test_loss is 0.5, required < 0.5: NOT met",
        "rule: every figure under merge.require",
        f"rankzero merge '{run}' --ignore-requirements",
    ):
        assert line in message
    assert caught.value.exit_code == 5
    # Told to merge all the same, the truth is still told.
    ignored = check_requirements(run / "adapter", is_ignored=True)
    assert ignored["eval_loss"] == {"required": "<= 1.2", "measured": 0.25, "met": True}
    assert ignored["test_loss"] == {"required": "< 0.5", "measured": 0.5, "met": False}


def test_what_holds_is_reported(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"test_loss": "<= 0.5"})
    expected = {"test_loss": {"required": "<= 0.5", "measured": 0.5, "met": True}}
    assert check_requirements(run / "adapter") == expected
    (run / "summary.json").unlink()
    with pytest.raises(GateFailed, match="test_loss was not measured"):
        check_requirements(run / "adapter")


def test_a_new_adapter_never_goes_with_figures_of_the_one_before(tmp_path: Path) -> None:
    run = RunDirectory(make_run(tmp_path / "run", {"eval_loss": "< 1"}))
    session = Session(load(tmp_path, HELD_OUT), World(), run)
    assert check_requirements(run.adapter)["eval_loss"]["met"]
    session.publish_adapter(4)  # and a kill, before its own figures are written
    with pytest.raises(GateFailed, match="eval_loss was not measured"):
        check_requirements(run.adapter)


@pytest.mark.parametrize("text", ['{"merge": {"require": {"eval_loss": "~ 1"}}}', "[]", "{"])
def test_a_damaged_resolved_config_opens_no_gate(text: str, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "resolved.json").write_text(text)
    with pytest.raises(ConfigError, match=r"resolved\.json cannot be used"):
        check_requirements(run / "adapter")


def test_the_gate_loads_no_torch() -> None:
    code = "import sys, trainer.merge_after_training; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
