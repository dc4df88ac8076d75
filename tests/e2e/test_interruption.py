"""Runs that are stopped, moved, or whose files change: the truth is told, nothing is left over."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.commands import EXAMPLE_DATA, rankzero, read_json, run, write_config
from tests.e2e.running import newest_step
from tests.tiny import make_model_folder

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


def stop_when(file: Path, config: Path) -> tuple[int, str, list[psutil.Process]]:
    """Start a run, send SIGTERM to the launcher once `file` is there; code, stderr, survivors."""
    started = subprocess.Popen(
        [sys.executable, "-m", "launcher", "train", str(config)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    processes: dict[int, psutil.Process] = {}
    while started.poll() is None and not file.exists():
        for child in psutil.Process(started.pid).children(recursive=True):
            processes[child.pid] = child
        psutil.wait_procs(list(processes.values()), timeout=0.05)
    assert started.poll() is None, "the run ended by itself"
    started.send_signal(signal.SIGTERM)
    _, errors = started.communicate(timeout=300)
    _, alive = psutil.wait_procs(list(processes.values()), timeout=30)
    return started.returncode, errors, alive


def test_sigterm_while_training_ends_with_75_and_says_so(base: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "run.json",
        base,
        tmp_path / "out",
        training={"max_steps": 100_000, "dataloader_workers": 1, "compile": False},
        evaluation={"every_steps": 50_000, "at_start": False},
    )
    code, errors, alive = stop_when(tmp_path / "out" / "metrics.jsonl", config)
    assert code == 75, errors
    said = re.search(
        r"^error: stopped by SIGTERM after step (\d+) of 100000; saved in [0-9.]+ s\n"
        r"  fix:  run the same command again\n\Z",
        errors,
        re.MULTILINE,
    )
    assert said is not None, errors
    assert "Traceback" not in errors
    assert alive == []
    status = read_json(tmp_path / "out" / "status.json")
    assert (status["state"], status["exit_code"]) == ("interrupted", 75)
    assert newest_step(tmp_path / "out") == int(said[1])


def test_sigterm_while_preparing_leaves_no_process_and_no_folder(
    base: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    line = json.dumps({"instruction": "why " * 40, "response": "because " * 10})
    rows.write_text(f"{line}\n" * 200_000)
    cache = tmp_path / "cache"
    config = write_config(
        tmp_path / "run.json",
        base,
        tmp_path / "out",
        data={"train": str(rows), "workers": 2, "cache_dir": str(cache)},
    )
    code, errors, alive = stop_when(cache / "prepared", config)
    assert code == 75, errors
    assert alive == []
    assert list((cache / "prepared").iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_a_run_is_measured_on_its_own_data_from_any_folder(base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    shutil.copy(EXAMPLE_DATA / "medical_qa.jsonl", rows)
    config = write_config(
        tmp_path / "run.json",
        base,
        tmp_path / "out: 1 #2",
        data={"train": "rows.jsonl", "cache_dir": str(tmp_path / "cache")},
    )
    root = Path(__file__).parent.parent.parent
    trained = run("-m", "trainer", "--config", config, cwd=tmp_path, PYTHONPATH=str(root))
    assert trained.returncode == 0, trained.stderr
    finished = (tmp_path / "out: 1 #2").rename(tmp_path / "moved: 1 #2")
    expected = read_json(finished / "summary.json")["after"]["test"]
    rows.write_text(rows.read_text()[: rows.stat().st_size // 2].rpartition("\n")[0])
    report = (finished / "data_report.json").read_bytes()
    evaluated = rankzero("evaluate", finished, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["loss"] == pytest.approx(expected, rel=1e-6)
    # The cache entry is gone, and the rows are no longer what they were.
    shutil.rmtree(read_json(finished / "data_report.json")["cache_entry"])
    refused = rankzero("evaluate", finished)
    assert refused.returncode == 2
    assert "has changed since it was trained" in refused.stderr
    assert (finished / "data_report.json").read_bytes() == report
