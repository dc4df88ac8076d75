"""A model card says what the run's files say, parses as the Hub parses it, and names no place."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.commands import EXAMPLE_DATA, read_json, read_metrics, write_config
from tests.tiny import make_model_folder
from tests.warm_ranks import train_warm
from trainer.merge.merging import merge_adapter
from trainer.model_card import write_model_card

REQUIREMENTS = {
    "eval_loss": {"required": "<= 9", "measured": 6.17, "met": True},
    "safety.compliance_rate": {"required": ">= 0.95", "measured": None, "met": False},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model and a run on it, of one broken row among its data."""
    root = tmp_path_factory.mktemp("alice")
    base = make_model_folder(root / "tiny-base")
    rows = (EXAMPLE_DATA / "medical_qa.jsonl").read_text(encoding="utf-8").splitlines()
    (root / "questions.jsonl").write_text("\n".join([*rows[:60], "{broken"]) + "\n")
    data = {"train": str(root / "questions.jsonl"), "on_bad_row": "skip"}
    config = write_config(
        root / "config.json",
        base,
        root / "run",
        data=data,
        training={"max_steps": 4, "warmup_steps": 1},
        lora={"target_modules": ["q_proj", "v_proj"], "r": 8},
    )
    ended = train_warm(config)
    assert ended.returncode == 0, ended.stderr
    return root


def make_card(root: Path, adapter: Path, output: Path, **report: Any) -> str:
    """Merge and write the card; returns its text."""
    if not output.exists():
        merged = dataclasses.asdict(merge_adapter(adapter, output))
        (root / "report.json").write_text(json.dumps(merged))
    base = str(root / "tiny-base")
    merged = {**read_json(root / "report.json"), **report}
    write_model_card(output, base=base, base_folder=Path(base), adapters=[adapter], report=merged)
    return (output / "README.md").read_text(encoding="utf-8")


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def cells(text: str) -> dict[str, list[str]]:
    """Every table row of a card, by its first cell."""
    return {row[0]: row[1:] for row in rows_of(text)}


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    notes = [f"the weights of {root / 'tiny-base'} are not the files"]
    output = root / "run" / "merged"
    return make_card(root, root / "run" / "adapter", output, requirements=REQUIREMENTS, notes=notes)


def test_it_says_what_the_run_says(text: str, root: Path) -> None:
    found, summary = cells(text), read_json(root / "run" / "summary.json")
    for split in ("validation", "test"):
        expected = [f"{summary[when][split]:.4f}" for when in ("before", "after")]
        assert [split, *expected] in rows_of(text)
    assert found["questions.jsonl"] == ["train", "61", "1", "1"]
    assert next(row for row in rows_of(text) if row[0] == "train")[1:3] == ["28", "28"]
    assert "1" in found["malformed JSON"]
    assert (found["Rank"], found["Alpha"], found["Steps"]) == (["8"], ["32"], ["4"])
    assert found["Adapted layers"] == ["q_proj, v_proj"]
    assert found["Learning rate"] == ["0.01, cosine"]
    assert found["Warm-up"] == ["1 steps"]
    assert found["Examples seen"] == ["32 (1.14 epochs of 28)"]
    assert found["Tokens seen"] == [f"{summary['tokens']:,}"]
    assert found["Weights of step"] == [str(summary["best_step"])]
    assert found["eval_loss"] == ["&lt;= 9", "6.17", "yes"]
    assert found["safety.compliance_rate"] == [">= 0.95", "not measured", "no"]
    assert found["Adapter tensors used, each once"] == ["8"]
    assert "Not measured: whether its answers are safe" in text


def test_it_names_no_place_and_is_the_same_every_time(text: str, root: Path) -> None:
    assert str(root) not in text
    assert "alice" not in text
    assert "Note: the weights of tiny-base are not the files." in text
    again = make_card(
        root,
        root / "run" / "adapter",
        root / "run" / "merged",
        requirements=REQUIREMENTS,
        notes=[f"the weights of {root / 'tiny-base'} are not the files"],
    )
    assert again == text


def test_a_local_base_is_no_hub_id(text: str) -> None:
    front = ModelCard(text).data.to_dict()
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rankzero", "lora"],
    }
    assert "do not state a licence" in text


def test_a_hub_base_and_its_licence(root: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--Org--Big-Model" / "snapshots" / "abc123"
    shutil.copytree(root / "tiny-base", snapshot)
    stated = {"license": "other", "license_name": "big-1.0", "license_link": "LICENSE.md"}
    (snapshot / "README.md").write_text(f"---\n{yaml.safe_dump(stated)}---\n# Big\n")
    for output, link in (("without", "https://huggingface.co/Org/Big-Model/blob/main/"), ("", "")):
        folder = tmp_path / f"out-{output}"
        folder.mkdir()
        if not output:
            (folder / "LICENSE.md").write_text("terms")
        for name in ("Org/Big-Model", str(snapshot)):
            adapters = [root / "run" / "adapter"]
            write_model_card(folder, base=name, base_folder=snapshot, adapters=adapters)
            card = ModelCard.load(folder / "README.md")
            front = card.data.to_dict()
            assert front["base_model"] == "Org/Big-Model"
            assert front["base_model_relation"] == "adapter"
            assert front["library_name"] == "peft"
            assert front["license"] == "other"
            assert front["license_link"] == f"{link}LICENSE.md"
            assert "commit `abc123`" in card.text
            assert str(tmp_path) not in card.content


def test_a_licence_text_alone_is_an_other_licence(root: Path, tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("terms")
    base, adapters = root / "tiny-base", [root / "run" / "adapter"]
    write_model_card(tmp_path, base=str(base), base_folder=base, adapters=adapters)
    front = ModelCard.load(tmp_path / "README.md").data
    assert (front.license, front.license_link) == ("other", "LICENSE")


def test_a_checkpoint_has_the_losses_of_its_step(root: Path, tmp_path: Path) -> None:
    text = make_card(root, root / "run" / "checkpoints" / "step-000002", tmp_path / "out")
    logged = {line["step"]: line["eval_loss"] for line in read_metrics(root / "run")[::-1]
              if "eval_loss" in line}  # fmt: skip
    row = ["validation", f"{logged[0]:.4f}", f"{logged[2]:.4f}"]
    assert row in rows_of(text)
    assert cells(text)["Steps"] == ["2 of 4 planned"]


def test_a_foreign_adapter_and_a_damaged_run_say_what_is_known(root: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(root / "run" / "adapter", tmp_path / "deep" / "bare" / "adapter")
    text = make_card(root, bare, tmp_path / "out")
    assert "Not known here" in text
    assert "No loss on held-out rows is known" in text
    assert "## Data" not in text
    assert cells(text)["Rank"] == ["8"]
    damaged = shutil.copytree(root / "run", tmp_path / "damaged")
    for name in ("summary.json", "data_report.json", "plan.json"):
        (damaged / name).write_text('{"steps": 3}')
    text = make_card(root, damaged / "adapter", tmp_path / "out2")
    assert "## Losses" not in text
    assert cells(text)["Learning rate"] == ["0.01, cosine"]
