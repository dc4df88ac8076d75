"""One LoRA run through the public command line, and everything it leaves behind."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.commands import rankzero, read_json, read_metrics, run, training_losses, write_config
from tests.tiny import make_model_folder
from tests.warm_ranks import train_warm

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with spaces in its name, trained once for all tests here."""
    folder = tmp_path_factory.mktemp("a run")
    config = write_config(
        folder / "run.json",
        base,
        folder / "out put",
        training={"max_steps": 10},
        checkpoint={"keep_last": 2, "every_steps": 3},
        merge={"after_training": True},
    )
    trained = rankzero("train", config)
    assert trained.returncode == 0, trained.stderr
    for expected in ("trainable params:", "no GPU", "208 train / 16 validation / 16 test"):
        assert expected in trained.stdout + trained.stderr
    return folder / "out put"


def test_the_run_directory_tells_the_whole_story(finished: Path) -> None:
    assert read_json(finished / "status.json")["state"] == "completed"
    assert (finished / "given_config.json").is_file()
    summary = read_json(finished / "summary.json")
    assert summary["after"]["validation"] < summary["before"]["validation"]
    assert summary["after"]["test"] < summary["before"]["test"]
    assert summary["steps"] == 10
    best, last = f"step-{summary['best_step']:06d}", "step-000010"
    checkpoints = {path.name for path in (finished / "checkpoints").iterdir()}
    assert {best, last, "latest"} <= checkpoints
    assert len(checkpoints - {best, "latest"}) <= 2  # keep_last
    assert (finished / "checkpoints" / "latest").resolve().name == last


def test_tensorboard_and_metrics_hold_the_same_losses(finished: Path) -> None:
    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    seen = {event.step: event.value for event in events.Scalars("train/loss")}
    logged = {line["step"]: line["loss"] for line in read_metrics(finished) if "loss" in line}
    assert set(seen) == set(logged) == set(range(1, 11))
    assert all(math.isclose(seen[step], logged[step], rel_tol=1e-6) for step in seen)


def test_the_best_weights_are_the_ones_kept(finished: Path) -> None:
    validation = {
        line["step"]: line["eval_loss"]
        for line in read_metrics(finished)
        if "eval_loss" in line and line["step"] > 0
    }
    summary = read_json(finished / "summary.json")
    assert summary["after"]["validation"] == pytest.approx(min(validation.values()), rel=1e-6)
    assert summary["best_step"] == min(validation, key=lambda step: validation[step])


def test_evaluate_measures_what_training_measured(finished: Path) -> None:
    evaluated = rankzero("evaluate", finished, "--split", "test", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    result = json.loads(evaluated.stdout)
    expected = read_json(finished / "summary.json")["after"]["test"]
    assert result["loss"] == pytest.approx(expected, rel=1e-6)
    assert result["examples"] == 16


def test_merged_model_needs_no_peft_and_answers_like_the_run(finished: Path, base: Path) -> None:
    script = (
        "import sys; sys.modules['peft'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        "print(AutoModelForCausalLM.from_pretrained(sys.argv[1]).num_parameters())"
    )
    loaded = run("-c", script, finished / "merged")
    assert loaded.returncode == 0, loaded.stderr
    # The base and the run, side by side.
    answered = rankzero(
        "generate", base, finished, "--prompt", "Hello", "--max-new-tokens", "8", "--json"
    )
    assert answered.returncode == 0, answered.stderr
    answers = json.loads(answered.stdout)
    assert [answer["model"] for answer in answers] == [str(base), str(finished)]


def test_a_run_is_never_overwritten(finished: Path, base: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    config = write_config(tmp_path / "again.json", base, finished)
    for command in (("-m", "launcher", "train", config), ("-m", "trainer", "--config", config)):
        refused = run(*command, "--resume", "never")
        assert refused.returncode == 2
        assert "already holds a run" in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_finished_run_started_again_is_left_as_it_is(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    again = rankzero("train", finished.parent / "run.json")
    assert again.returncode == 0, again.stderr
    assert f"{finished} is complete: nothing to do" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_another_run_does_not_go_on_in_this_one(finished: Path, base: Path, tmp_path: Path) -> None:
    kept = [path for path in finished.iterdir() if path.is_file()]
    before = {path: path.read_bytes() for path in kept}
    config = write_config(tmp_path / "other.json", base, finished, training={"learning_rate": 2e-2})
    refused = rankzero("train", config)
    assert refused.returncode == 2
    assert "training.learning_rate" in refused.stderr
    assert {path: path.read_bytes() for path in kept} == before


def test_bad_rows_stop_before_training_and_leave_nothing(base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "response": "b"}\n{"instruction": 7, "response": "b"}\n')
    config = write_config(
        tmp_path / "run.json",
        base,
        tmp_path / "out",
        data={"train": str(rows), "validation_size": 0, "test_size": 0},
        evaluation={"every_steps": None},
    )
    failed = rankzero("train", config)
    assert failed.returncode == 2
    assert f"{rows}:2" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_that_ends_in_nan_is_a_failure_not_a_best_model(base: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "run.json",
        base,
        tmp_path / "out",
        training={
            "learning_rate": 10,
            "max_steps": 2,
            "warmup_steps": 0,
            "optimizer": "sgd",
            "max_grad_norm": 1e6,
            "weight_decay": 1e9,
        },
        evaluation={"every_steps": 1},
    )
    failed = train_warm(config)
    assert failed.returncode == 4, failed.stderr
    assert "validation loss is" in failed.stderr
    assert not (tmp_path / "out" / "summary.json").exists()


def test_folders_a_run_would_write_are_never_replaced(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "adapter").mkdir(parents=True)
    (tmp_path / "out" / "adapter" / "mine.txt").write_text("keep")
    config = write_config(tmp_path / "run.json", base, tmp_path / "out")
    refused = rankzero("train", config)
    assert refused.returncode == 2
    assert "adapter is there" in refused.stderr
    assert (tmp_path / "out" / "adapter" / "mine.txt").read_text() == "keep"


def test_a_failed_merge_keeps_the_result_of_training(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".merged.partial").write_text("in the way of the merge")
    model = tmp_path / "base"
    shutil.copytree(base, model)
    config = write_config(
        tmp_path / "run.json",
        model,
        tmp_path / "out",
        training={"max_steps": 2},
        evaluation={"every_steps": None},
        data={"validation_size": 0, "test_size": 0},
        merge={"after_training": True},
    )
    failed = train_warm(config)
    assert failed.returncode == 3, failed.stderr
    assert "the merge after training failed" in failed.stderr
    assert read_json(tmp_path / "out" / "summary.json")["steps"] == 2
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


def test_what_a_run_requires_keeps_it_from_being_merged(base: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "out"
    required = {"eval_loss": "< 1e-3", "train_loss": "> 0"}
    config = write_config(
        tmp_path / "run.json",
        base,
        run_folder,
        training={"max_steps": 2},
        merge={"after_training": True, "require": required},
    )
    refused = rankzero("train", config)
    assert refused.returncode == 5, refused.stderr
    loss = read_json(run_folder / "summary.json")["after"]["validation"]
    assert f"eval_loss is {loss}, required < 1e-3: NOT met" in refused.stderr
    assert "Traceback" not in refused.stderr
    status = read_json(run_folder / "status.json")
    assert (status["state"], status["exit_code"]) == ("failed", 5)
    assert "--ignore-requirements" in status["remedy"]
    assert (run_folder / "adapter" / "adapter_model.safetensors").is_file()
    assert not (run_folder / "merged").exists()


def test_a_run_that_goes_on_replaces_what_its_earlier_end_was_merged_into(
    finished: Path, tmp_path: Path
) -> None:
    again = shutil.copytree(finished, tmp_path / "again", symlinks=True)
    settings = ("training.max_steps=11", "evaluation.load_best=false", f"output_dir={again}")
    options = [part for setting in settings for part in ("--set", setting)]
    config = finished.parent / "run.json"
    trained = rankzero("train", config, *options, "--set", "checkpoint.allow_changes=true")
    assert trained.returncode == 0, trained.stderr
    merged = [path / "merged" / "model.safetensors" for path in (finished, again)]
    assert merged[0].read_bytes() != merged[1].read_bytes()


def test_a_diverging_run_says_so(base: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "run.json",
        base,
        tmp_path / "out",
        training={"learning_rate": 10, "warmup_steps": 0, "optimizer": "sgd", "weight_decay": 1e9},
        evaluation={"at_start": False},
    )
    failed = train_warm(config)
    assert failed.returncode == 4, failed.stderr
    assert "Traceback" not in failed.stderr
    status = read_json(tmp_path / "out" / "status.json")
    assert status["state"] == "failed"
    assert status["exit_code"] == 4
    assert "learning_rate" in status["remedy"]


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_adapters_train_on_a_quantised_base(quantization: str, tmp_path: Path) -> None:
    wide = make_model_folder(tmp_path / "wide", hidden_size=64, intermediate_size=128)
    config = write_config(
        tmp_path / "run.json",
        wide,
        tmp_path / "out",
        model={"quantization": quantization},
        merge={"after_training": True, "base_precision": "auto"},
    )
    trained = train_warm(config)
    assert trained.returncode == 0, trained.stderr
    merged = read_json(tmp_path / "out" / "merged" / "merge.json")
    assert merged["quantization"] == quantization
    assert merged["distances"].keys() == {"original", "dequantized"}
    assert merged["base_precision"] == min(merged["distances"], key=merged["distances"].get)
    summary = read_json(tmp_path / "out" / "summary.json")
    assert summary["after"]["test"] < summary["before"]["test"]
    # Measured again on a base quantised afresh.
    evaluated = rankzero("evaluate", tmp_path / "out", "--json")
    assert json.loads(evaluated.stdout)["loss"] == pytest.approx(summary["after"]["test"], rel=1e-4)


def test_full_fine_tuning_ends_in_a_plain_model(base: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "run.json",
        base,
        tmp_path / "out",
        lora={"enabled": False},
        training={"learning_rate": 1e-3, "gradient_checkpointing": True, "scheduler": "linear"},
        tracking={"to": []},
    )
    trained = train_warm(config)
    assert trained.returncode == 0, trained.stderr
    summary = read_json(tmp_path / "out" / "summary.json")
    assert summary["after"]["test"] < summary["before"]["test"]
    evaluated = rankzero("evaluate", tmp_path / "out", "--json")
    assert json.loads(evaluated.stdout)["loss"] == pytest.approx(summary["after"]["test"], rel=1e-6)
    assert not (tmp_path / "out" / "tensorboard").exists()


def test_the_same_config_gives_the_same_losses(base: Path, tmp_path: Path) -> None:
    one, other = (
        write_config(tmp_path / f"{name}.json", base, tmp_path / name, lora={"dropout": 0.2})
        for name in ("one", "other")
    )
    assert run("-m", "trainer", "--config", one).returncode == 0
    assert train_warm(other).returncode == 0
    losses = training_losses(tmp_path / "one")
    assert losses == training_losses(tmp_path / "other")
    assert len(losses) == 6
