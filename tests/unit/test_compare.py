"""`rankzero compare`: runs side by side from what they left, finished or not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from click.testing import CliRunner, Result

from launcher.cli import rankzero
from launcher.compare import compare, to_results
from trainer.report.read import read_run
from trainer.report.values import flatten

METRICS = [
    {"step": 0, "time": 100.0, "eval_loss": 2.0},
    {"step": 0, "time": 101.0, "test_loss": 2.1},
    {"step": 1, "time": 102.0, "loss": 1.9, "tokens_per_second": 50.0, "host_memory_gib": 1.5},
    {"step": 2, "time": 103.0, "loss": 1.7, "tokens_per_second": 70.0, "host_memory_gib": 2.5},
    {"step": 2, "time": 104.0, "eval_loss": 1.6},
]
CONFIG = {
    "model": {"name": "m"},
    "lora": {"r": 16, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {}},
    "training": {"learning_rate": 1e-4, "max_steps": None},
    "output_dir": "somewhere",
}
SUMMARY = {
    "before": {"validation": 2.0},
    "after": {"validation": 1.5},
    "steps": 2,
    "best_step": 2,
    "train_loss": 1.8,
    "training_seconds": 7.5,
    "tokens_per_second": 65.0,
}


def _run(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
    metrics: list[dict[str, Any]] | None = None,
) -> Path:
    folder.mkdir()
    files = {"resolved.json": config, "summary.json": summary, "status.json": status}
    for name, content in files.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    if metrics is not None:
        lines = "".join(json.dumps(line) + "\n" for line in metrics)
        (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return folder


def _invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(rankzero, ["compare", *map(str, arguments)])


def test_only_settings_that_differ_are_shown(tmp_path: Path) -> None:
    other = json.loads(json.dumps(CONFIG))
    other["training"]["learning_rate"] = 2e-4
    other["lora"]["target_modules"] = "all-linear"
    other["output_dir"] = "elsewhere"
    other["new"] = {"setting": True}
    first = _run(tmp_path / "a", config=CONFIG)
    second = _run(tmp_path / "b", config=other)
    assert compare([read_run(first), read_run(second)]).settings == {
        "lora.target_modules": (["q_proj", "v_proj"], "all-linear"),
        "training.learning_rate": (1e-4, 2e-4),
        "new.setting": (None, True),
    }
    assert flatten({"a": {"b": {}, "c": 1}}) == {"a.b": {}, "a.c": 1}


def test_a_finished_run_shows_its_summary(tmp_path: Path) -> None:
    status = {"state": "completed", "exit_code": 0}
    run = _run(tmp_path / "a", config=CONFIG, summary=SUMMARY, status=status, metrics=METRICS)
    results = to_results(read_run(run))
    assert results["state"] == "completed"
    assert results["validation loss before"] == 2.0
    assert results["validation loss after"] == 1.5
    assert results["test loss before"] == 2.1
    assert (results["steps"], results["best step"]) == (2, 2)
    assert results["tokens/s"] == 65.0
    assert results["peak host memory (GiB)"] == 2.5
    assert results["training time (s)"] == 7.5


def test_a_running_run_shows_what_it_has_logged(tmp_path: Path) -> None:
    status = {
        "state": "running",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "created": psutil.Process().create_time(),
    }
    run = _run(tmp_path / "a", config=CONFIG, status=status, metrics=METRICS)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "lo')  # a line in the middle of being written
    results = to_results(read_run(run))
    assert results["state"] == "running"
    assert results["steps"] == 2
    assert results["training loss (last)"] == 1.7
    assert results["tokens/s"] == 60.0
    assert results["validation loss best"] == 1.6
    assert results["time since first log (s)"] == 4.0
    assert "validation loss after" not in results


def test_a_run_whose_process_is_gone_is_not_running(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    status = {"state": "running", "pid": process.pid, "host": socket.gethostname()}
    run = _run(tmp_path / "a", status=status)
    assert to_results(read_run(run))["state"] == "ended without a word"
    elsewhere = _run(tmp_path / "b", status={**status, "host": "another-machine"})
    assert to_results(read_run(elsewhere))["state"] == "running"


def test_a_failed_run_says_why_and_losses_that_are_not_finite_do_not_count(tmp_path: Path) -> None:
    status = {"state": "failed", "exit_code": 4, "error": "TrainingFailed", "message": "loss nan"}
    metrics = [*METRICS, {"step": 3, "time": 105.0, "loss": float("nan")}]
    run = _run(tmp_path / "a", config=CONFIG, status=status, metrics=metrics)
    printed = _invoke(run, "--json")
    assert printed.exit_code == 0
    results = json.loads(printed.stdout)["results"]
    assert results["state"] == ["failed"]
    assert results["error"] == ["TrainingFailed: loss nan"]
    assert results["training loss (last)"] == [1.7]


def test_a_plan_adds_its_plain_values(tmp_path: Path) -> None:
    run = _run(tmp_path / "a", config=CONFIG)
    plan = {"strategy": "zero3", "processes": 8, "reasons": ["because"], "memory": {"x": 1}}
    (run / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    results = to_results(read_run(run))
    assert results["plan: strategy"] == "zero3"
    assert results["plan: processes"] == 8
    assert not any("reasons" in name or "memory" in name for name in results if "plan" in name)


def test_the_table_names_runs_results_and_settings(tmp_path: Path) -> None:
    other = {**CONFIG, "training": {"learning_rate": 5e-4, "max_steps": None}}
    first = _run(tmp_path / "a b", config=CONFIG, summary=SUMMARY, metrics=METRICS)
    second = _run(tmp_path / "[red]", config=other)
    printed = CliRunner().invoke(rankzero, ["compare", str(first), str(second)])
    assert printed.exit_code == 0
    lines = printed.stdout.splitlines()
    after = next(line for line in lines if line.startswith("validation loss after"))
    assert after.split()[-2:] == ["1.5", "-"]
    rate = next(line for line in lines if line.startswith("training.learning_rate"))
    assert rate.split()[-2:] == ["0.0001", "0.0005"]
    assert "[red]" in printed.stdout
    assert "max_steps" not in printed.stdout
    assert "no setting differs" in _invoke(first, first).stdout


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    refused = _invoke(tmp_path)
    assert refused.exit_code == 2
    assert "holds no run" in refused.stderr
    assert "no such folder" in _invoke(tmp_path / "none").stderr
    broken = _run(tmp_path / "broken")
    (broken / "resolved.json").write_text("{", encoding="utf-8")
    refused = _invoke(broken)
    assert refused.exit_code == 2
    assert "resolved.json: cannot be read" in refused.stderr


def test_parts_of_another_shape_than_training_writes_count_as_absent(tmp_path: Path) -> None:
    status = {"state": "running", "pid": "x", "host": "elsewhere"}
    (tmp_path / "status.json").write_text(json.dumps(status), encoding="utf-8")
    (tmp_path / "summary.json").write_text('{"before": 3, "after": null}', encoding="utf-8")
    results = to_results(read_run(tmp_path))
    assert results["state"] == "running"
    assert "validation loss after" not in results
