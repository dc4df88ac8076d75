"""Each shipped example config trains the real SmolLM2 on a CPU and leaves what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from tests.commands import rankzero, read_json
from tests.real_model import ROOT
from tests.warm_ranks import train_warm
from trainer.config import load_config, to_json
from trainer.config_paths import with_absolute_paths

pytestmark = pytest.mark.e2e

# What a CPU of two cores needs changed: the model, few and short steps, and no fp16 there.
SHORT = {
    "training.max_steps": 2,
    "training.batch_size": 1,
    "training.gradient_accumulation_steps": 2,
    "training.logging_steps": 1,
    "training.warmup_steps": 1,
    "training.precision": "auto",
}
HELD_OUT = {"data.validation_size": 2, "data.test_size": 2}
# Name -> what else changes, the folders and files it ends with.
EXAMPLES: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "system-a-medical.yaml": (HELD_OUT, ("adapter", "best_model")),
    "system-b-medical.json": (
        {"data.validation_size": 2, "evaluation.every_steps": 1, "checkpoint.every_steps": 1},
        ("adapter", "best_model"),
    ),
    "system-c-small-sft.yaml": ({}, ("adapter", "merged")),
    "system-d-reasoning.json": (
        {"data.validation_size": 2, "model.quantization": "none"},
        ("adapter", "best_model"),
    ),
}
ALWAYS = ("summary.json", "metrics.jsonl", "data_report.json", "report.html", "training_curves.png")


def test_every_example_is_here() -> None:
    assert set(EXAMPLES) == {path.name for path in (ROOT / "examples").glob("system-*")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_trains_and_ends_with_its_files(
    name: str, real_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, folders = EXAMPLES[name]
    out = tmp_path / "out"
    settings = {**SHORT, **own, "model.name": str(real_model), "output_dir": str(out)}
    overrides = [
        f"{key}={json.dumps(value) if not isinstance(value, str) else value}"
        for key, value in settings.items()
    ]
    monkeypatch.chdir(ROOT)
    if name == "system-a-medical.yaml":  # as a user does it
        options = [word for override in overrides for word in ("--set", override)]
        by_command = rankzero("train", f"examples/{name}", *options)
        code, said = by_command.returncode, by_command.stderr
    else:
        config = with_absolute_paths(load_config(Path("examples", name), overrides))
        (tmp_path / "resolved.json").write_text(to_json(config), encoding="utf-8")
        trained = train_warm(tmp_path / "resolved.json")
        code, said = trained.returncode, trained.stderr
    assert code == 0, said[-3000:]
    assert read_json(out / "status.json")["state"] == "completed"
    assert read_json(out / "summary.json")["steps"] == 2
    for missing in (entry for entry in (*ALWAYS, *folders) if not (out / entry).exists()):
        pytest.fail(f"{missing} is not there")
    assert AutoPeftModelForCausalLM.from_pretrained(out / "adapter").num_parameters() > 1e8
    if "merged" in folders:
        assert AutoModelForCausalLM.from_pretrained(out / "merged").num_parameters() > 1e8
