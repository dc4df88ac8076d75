"""What trackers are told, and what finds a run again in them."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerControl, TrainerState

from trainer import trackers
from trainer.config import Config, TrackingConfig
from trainer.errors import EnvironmentProblem
from trainer.run_check import check_trackers
from trainer.run_directory import RunDirectory
from trainer.trackers import RunToTrack
from trainer.tracking import TrackersCallback, tracker_environment

SAMPLE = {"prompt": "# Why?", "greedy": "a\n\n* b", "sampled": "c", "quality": 0.5}


class FakeTracker:
    """Says what it was told; the service gives a run its identity, as MLflow does."""

    given = 0

    def __init__(self, run: RunToTrack) -> None:
        FakeTracker.given += 1
        self.identity: str | None = run.identity or f"run {FakeTracker.given}"
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.samples: list[Any] = []
        self.curves: bytes | None = None

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append((step, metrics))

    def show_samples(self, samples: list[dict[str, Any]], step: int) -> None:
        self.samples.append((step, samples))

    def finish(self, curves: Path) -> None:
        self.curves = curves.read_bytes()


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # as if it were installed
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", FakeTracker)
    return make_config("mlflow")


def make_config(*trackers: str) -> Config:
    return Config.model_validate(
        {"model": {"name": "m"}, "data": {"train": "rows.jsonl"}, "tracking": {"to": trackers}}
    )


def log(callback: TrackersCallback, step: int, logs: dict[str, float]) -> None:
    callback.on_log(None, TrainerState(global_step=step), TrainerControl(), logs=logs)


def test_a_run_keeps_its_identity_and_another_one_has_its_own(
    config: Config, tmp_path: Path
) -> None:
    first = RunDirectory(tmp_path / "first")
    second = RunDirectory(tmp_path / "second")
    identities = []
    for directory in (first, first, second):
        directory.path.mkdir(exist_ok=True)
        (tracker,) = TrackersCallback(config, directory, 0).trackers
        identities.append(tracker.identity)
    assert identities[0] == identities[1] != identities[2]


def test_lines_are_shown_by_split_and_answers_with_their_line(
    config: Config, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path)
    callback = TrackersCallback(config, directory, 0)
    log(callback, 1, {"loss": 1.5, "tokens": 8})
    for step in (1, 2):
        with directory.samples.open("a", encoding="utf-8") as file:
            line = {"step": step, "samples": [{**SAMPLE, "greedy": str(step)}]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        log(callback, step, {"eval_quality": 0.5, "test_loss": 2.0})
    (tracker,) = callback.trackers
    assert isinstance(tracker, FakeTracker)
    assert tracker.logged == [
        (1, {"train/loss": 1.5, "train/tokens": 8}),
        (1, {"eval/quality": 0.5, "test/loss": 2.0}),
        (2, {"eval/quality": 0.5, "test/loss": 2.0}),
    ]
    assert tracker.samples == [(step, [{**SAMPLE, "greedy": str(step)}]) for step in (1, 2)]
    (tmp_path / "training_curves.png").write_bytes(b"picture")
    callback.finish()
    assert tracker.curves == b"picture"


def test_only_what_is_new_is_shown_of_a_step_that_is_done_again() -> None:
    last = {"train/loss": 5, "eval/loss": 4}
    metrics = {"train/loss": 1.0, "eval/loss": 2.0, "test/loss": 3.0}
    assert trackers.later_than(last, metrics, 4) == {"test/loss": 3.0}
    assert trackers.later_than(last, metrics, 5) == {"eval/loss": 2.0, "test/loss": 3.0}
    assert trackers.later_than(last, metrics, 6) == metrics


def test_tensorboard_shows_answers_as_they_are(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    tracker_environment(TrackingConfig(), directory)
    tracker = trackers.TensorBoard(RunToTrack(make_config("tensorboard"), directory, 0))
    tracker.show_samples([SAMPLE], 3)
    tracker.finish(tmp_path / "none.png")
    events = EventAccumulator(str(directory.tensorboard))
    events.Reload()
    (shown,) = events.Tensors("samples/1/text_summary")
    assert shown.step == 3
    text = shown.tensor_proto.string_val[0].decode()
    assert "    # Why?" in text  # no heading, no list: the words of the model
    assert "    a\n    \n    * b" in text


def test_a_variable_the_user_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_DIR", "WANDB_ERROR_REPORTING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    tracker_environment(TrackingConfig(to=()), RunDirectory(tmp_path / "out"))
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://server:5000"
    assert os.environ["WANDB_DIR"] == str(tmp_path / "out")
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"trackio is not installed(.|\n)*pip install"):
        check_trackers(TrackingConfig(to=("trackio",)))


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb not installed")
def test_a_user_who_is_not_logged_in_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = RunDirectory(tmp_path)
    with pytest.raises(EnvironmentProblem, match="wandb login, WANDB_MODE=offline"):
        TrackersCallback(make_config("wandb"), directory, 0)


def test_settings_are_listed_by_their_dotted_names() -> None:
    flat = dict(trackers.flat({"lora": {"r": 8, "rank_pattern": {}}, "seed": 1}))
    assert flat == {"lora.r": 8, "lora.rank_pattern": {}, "seed": 1}
