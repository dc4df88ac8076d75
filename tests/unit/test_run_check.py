"""What a run lacks is told before its data is prepared, by whoever starts it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from launcher import run as launcher_run
from launcher.cli import rankzero
from tests.tiny import make_model_folder
from trainer import main as trainer_main
from trainer.config import Config
from trainer.errors import ConfigError, EnvironmentProblem
from trainer.run_check import check_run


def make_config(folder: Path, **sections: Any) -> Config:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").touch()
    (folder / "model" / "model.safetensors").touch()
    return Config.model_validate(
        {
            "model": {"name": str(folder / "model")},
            "data": {"train": "rows.jsonl"},
            "output_dir": str(folder / "run"),
            **sections,
        }
    )


def test_a_run_with_all_it_needs_passes(tmp_path: Path) -> None:
    check_run(make_config(tmp_path, safety={"enabled": True}), "auto")
    own = {"enabled": True, "checker": "own.Checker"}  # imported where it is used
    check_run(make_config(tmp_path, safety=own), "never")
    check_run(make_config(tmp_path, model={"name": "owner/model"}), "auto")  # fetched later


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"samples": {"prompts": "none.txt"}}, "none.txt: cannot be read"),
        ({"safety": {"enabled": True, "prompts": "none.yaml"}}, "none.yaml: cannot be read"),
        ({"safety": {"enabled": True, "rules": "none.yaml"}}, "none.yaml"),
        ({"safety": {"enabled": True, "checker": "rule"}}, "did you mean `rules`"),
    ],
)
def test_what_cannot_be_asked_or_checked_is_told(
    tmp_path: Path, sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as told:
        check_run(make_config(tmp_path, **sections), "auto")
    assert told.value.fix


def remove_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def remove_a_shard(model: Path) -> None:
    remove_weights(model)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (model / "model-1.safetensors").touch()


def damage_the_index(model: Path) -> None:
    remove_weights(model)
    (model / "model.safetensors.index.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove_weights, "model holds no weights"),
        (remove_a_shard, "model lacks model-2.safetensors"),
        (damage_the_index, "index.json is damaged"),
    ],
)
def test_a_model_that_lacks_weights_is_told(
    tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    config = make_config(tmp_path)
    damage(tmp_path / "model")
    with pytest.raises(ConfigError, match=said) as told:
        check_run(config, "auto")
    assert told.value.fix


@pytest.fixture
def asks_for_a_missing_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config, whole but for its tracker; preparing its data would fail the test."""
    model = make_model_folder(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n', encoding="utf-8")
    config = {
        "model": {"name": str(model)},
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "tracking": {"to": ["trackio"]},
        "output_dir": str(tmp_path / "run"),
    }
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "trackio" else found(name, *rest),
    )
    monkeypatch.setattr(launcher_run, "supervise", lambda *_, **__: pytest.fail("prepared"))
    monkeypatch.setattr(trainer_main, "prepared_for_rank", lambda *_: pytest.fail("prepared"))
    return path


def test_the_launcher_tells_before_anything_is_written(asks_for_a_missing_tracker: Path) -> None:
    path = asks_for_a_missing_tracker
    ended = CliRunner().invoke(rankzero, ["train", str(path), "--profile", "cpu"])
    assert ended.exit_code == 3, ended.output
    assert "trackio is not installed" in ended.stderr
    assert not (path.parent / "run").exists()


def test_a_trainer_started_by_hand_tells_before_it_prepares(
    asks_for_a_missing_tracker: Path,
) -> None:
    with pytest.raises(EnvironmentProblem, match="trackio is not installed"):
        trainer_main.run(asks_for_a_missing_tracker)
