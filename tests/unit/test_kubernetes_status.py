"""What `rankzero status` shows of a run, for a person and for a program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.commands.cluster_options import find_name
from launcher.kubernetes.client.reading import read_all_states
from launcher.kubernetes.client.status_screen import (
    read_status,
    run_to_json,
    run_to_text,
    runs_to_text,
    status_to_json,
)
from tests.kubernetes_objects import (
    NAME,
    FakeApi,
    last_word,
    make_job,
    make_pod,
    refusal,
    running,
    terminated,
    unscheduled,
)
from trainer.errors import ConfigError


@pytest.fixture(autouse=True)
def _narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def failed() -> FakeApi:
    end = terminated(3, last_word(3, "EnvironmentProblem", "the disk is full", "free some"))
    return FakeApi(make_job(condition=("Failed", "PodFailurePolicy", "exit 3")), make_pod(end))


def test_a_run_of_two_nodes_at_work() -> None:
    api = FakeApi(
        make_job(),
        make_pod(terminated(75), index=0),
        make_pod(running(), index=0, attempt=2, machine="gpu-machine-of-the-second-zone"),
        make_pod(index=1, machine=None, conditions=(unscheduled("Insufficient nvidia.com/gpu"),)),
    )
    api.logs[f"{NAME}-0-2"] = [f"2026-01-01T10:00:0{step}Z step {step}" for step in range(9)]
    text = run_to_text(read_status(api, NAME))
    assert text.startswith(f"{NAME}: running since 2026-01-01")
    assert "namespace team" in text
    assert "2 attempts" in text
    assert "exit 75, saved" in text.replace("\n", " ")
    assert "node 1 waiting for a machine: Insufficient nvidia.com/gpu" in text
    assert "  step 8" in text
    assert "step 3" not in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_a_failure_is_told_with_its_fix_and_its_code() -> None:
    status = read_status(failed(), NAME)
    assert "failed with exit code 3: the disk is full" in run_to_text(status)
    assert "free some" in run_to_text(status)
    values = json.loads(json.dumps(status_to_json(status)))
    assert values["phase"] == "failed"
    assert values["outcome"]["exit_code"] == 3
    assert values["outcome"]["error"] == "EnvironmentProblem"
    assert values["outcome"]["fix"] == "free some"
    assert values["pods"][0]["ended"]["exit_code"] == 3


def test_a_run_that_is_not_over_has_no_outcome() -> None:
    (state,) = read_all_states(FakeApi(make_job(), make_pod(running())))
    assert run_to_json(state)["outcome"] is None


def test_a_log_that_cannot_be_read_does_not_hide_the_rest() -> None:
    api = failed()
    api.refused["log", "Pod"] = refusal(500, "InternalError", "dial tcp: timeout", "Pod")
    text = run_to_text(read_status(api, NAME))
    assert "dial tcp: timeout" in text
    assert "exit code 3" in text


def test_all_runs_of_a_namespace() -> None:
    assert runs_to_text(read_all_states(FakeApi()), "team") == "no runs in namespace team"
    text = runs_to_text(read_all_states(failed()), "team")
    assert text.splitlines()[1].split()[:3] == [NAME, "job", "failed"]
    assert text.splitlines()[-1] == f"{NAME} failed: the disk is full"


def test_no_such_run() -> None:
    with pytest.raises(ConfigError, match=f"no run {NAME} in namespace team"):
        read_status(FakeApi(), NAME)


def test_a_run_is_named_by_itself_or_by_its_config(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "{model: {name: a/b}, data: {train: x.jsonl}, output_dir: runs/My Run}", encoding="utf-8"
    )
    assert find_name(str(config)).startswith("rankzero-my-run-")
    assert find_name(NAME) == NAME
    with pytest.raises(ConfigError):
        find_name("runs/one")
    with pytest.raises(ConfigError):
        find_name(str(tmp_path / "missing.yaml"))
