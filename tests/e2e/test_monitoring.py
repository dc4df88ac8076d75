"""What a run says of itself: answers, their safety, advice, and planted faults by their names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from peft import AutoPeftModelForCausalLM, PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from tests.commands import EXAMPLE_DATA, rankzero, read_json, read_metrics, write_config
from tests.tiny import make_model_folder, make_tokenizer
from tests.warm_ranks import train_warm

pytestmark = pytest.mark.e2e
SHORT_ROWS = {"max_length": 128, "on_bad_row": "skip", "test_size": 0}
PROMPTS = ["What is blood pressure?", "My chest hurts. What should I do?"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def watched(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run through three ranks that answers and is checked at every evaluation."""
    folder = tmp_path_factory.mktemp("watched")
    config = write_config(
        folder / "run.json",
        base,
        folder / "out",
        lora={"r": 8, "alpha": 16, "progressive_ranks": [2, 4, 8]},
        checkpoint={"every_steps": 2, "keep_last": 10},
        training={"max_steps": 6, "precision": "fp32"},
        samples={"prompts": PROMPTS, "max_new_tokens": 12},
        safety={"enabled": True, "max_new_tokens": 12},
        merge={"after_training": True, "require": {"safety.compliance_rate": ">= 0"}},
    )
    trained = rankzero("train", config)
    assert trained.returncode == 0, trained.stderr
    return folder / "out"


def test_the_same_prompts_are_answered_each_time(watched: Path, base: Path) -> None:
    samples = lines(watched / "samples.jsonl")
    assert [line["step"] for line in samples[:4]] == [0, 2, 4, 6]
    for line in samples:
        assert [sample["prompt"] for sample in line["samples"]] == PROMPTS
    options = ("--max-new-tokens", "12", "--precision", "fp32", "--json")
    generated = rankzero("generate", base, "--prompt", PROMPTS[0], *options)
    assert generated.returncode == 0, generated.stderr
    assert json.loads(generated.stdout)[0]["answer"] == samples[0]["samples"][0]["greedy"]
    drawn = [sample["sampled"] for sample in samples[0]["samples"]]
    assert drawn != [sample["greedy"] for sample in samples[0]["samples"]]


def test_safety_is_counted_from_its_checks(watched: Path) -> None:
    for line in lines(watched / "safety.jsonl"):
        checks = line["checks"]
        assert len(checks) >= 15  # the built-in prompts
        assert line["compliance_rate"] == sum(c["is_safe"] for c in checks) / len(checks)
        assert line["average_score"] == pytest.approx(sum(c["score"] for c in checks) / len(checks))
        assert all(check["violations"] for check in checks if not check["is_safe"])


def test_answers_are_metrics_too(watched: Path) -> None:
    names = ("eval_quality", "eval_response_words", "eval_safety_compliance_rate")
    logged = read_metrics(watched)
    events = EventAccumulator(str(watched / "tensorboard"))
    events.Reload()
    for name in names:
        values = {line["step"]: line[name] for line in logged if name in line}
        assert set(values) == {0, 2, 4, 6}
        shown = {e.step: e.value for e in events.Scalars(name.replace("eval_", "eval/", 1))}
        assert shown == pytest.approx(values)


def test_the_merge_asked_for_the_measured_safety(watched: Path) -> None:
    outcome = read_json(watched / "merged" / "merge.json")["requirements"]
    measured = outcome["safety.compliance_rate"]["measured"]
    assert measured == lines(watched / "safety.jsonl")[-1]["compliance_rate"]


@pytest.mark.parametrize(("rank", "step"), [(2, 2), (4, 4), (8, 6)])
def test_a_larger_rank_starts_as_exactly_the_smaller_one(
    watched: Path, base: Path, rank: int, step: int
) -> None:
    """The checkpoint holds the enlarged adapter before its first step; PEFT loads both."""
    small = AutoPeftModelForCausalLM.from_pretrained(watched / f"checkpoint_r{rank}")
    assert small.peft_config["default"].r == rank
    model = AutoModelForCausalLM.from_pretrained(base)
    large = PeftModel.from_pretrained(model, watched / "checkpoints" / f"step-{step:06d}")
    assert large.peft_config["default"].r == 8
    ids = make_tokenizer()(PROMPTS[1], return_tensors="pt").input_ids
    one, other = small(input_ids=ids).logits, large(input_ids=ids).logits
    assert (one - other).abs().max() <= 1e-6 * other.abs().max()
    with large.disable_adapter():
        assert not large(input_ids=ids).logits.allclose(other)


def test_a_rank_learns_in_its_own_stage_only(watched: Path, base: Path) -> None:
    for step, rank in ((2, 2), (4, 4), (6, 8)):
        folder = watched / "checkpoints" / f"step-{step:06d}"
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        columns = [p for name, p in model.named_parameters() if "lora_B" in name]
        assert columns
        for column in columns:
            assert column[:, :rank].any(dim=0).all()
            assert not column[:, rank:].any()


# -- planted faults -------------------------------------------------------------------------------


def advice(run: Path) -> dict[str, dict[str, Any]]:
    path = run / "advice.jsonl"
    return {line["name"]: line for line in lines(path)} if path.exists() else {}


def test_a_batch_that_is_not_a_number_stops_the_run_and_names_its_rows(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    base = make_model_folder(tmp_path / "base", tokenizer=tokenizer)
    model = AutoModelForCausalLM.from_pretrained(base)
    token = tokenizer("☃").input_ids[-1]
    model.get_input_embeddings().weight.data[token] = float("nan")
    model.save_pretrained(base)
    rows = (EXAMPLE_DATA / "medical_qa.jsonl").read_text(encoding="utf-8").splitlines()[:24]
    row = json.loads(rows[16])
    rows[16] = json.dumps({**row, "instruction": "☃ " + row["instruction"]}, ensure_ascii=False)
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    config = write_config(
        tmp_path / "run.json",
        base,
        tmp_path / "out",
        data={"train": str(data), "validation_size": 0, "test_size": 0, "order": "given"},
        training={"max_steps": 3, "max_tokens_per_device": 512},
        checkpoint={"every_steps": 1},
        evaluation={"every_steps": None},
    )
    failed = train_warm(config)
    assert failed.returncode == 4, failed.stderr
    assert "the loss of step 3 is not a finite number" in failed.stderr
    assert re.search(rf"on the training rows (\d+, )*17(, \d+)* of {data}", failed.stderr)
    assert (tmp_path / "out" / "checkpoints" / "latest").resolve().name == "step-000002"


def test_a_rate_a_hundred_times_too_high_is_named(real_model: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "run.json",
        real_model,
        tmp_path / "out",
        data={**SHORT_ROWS, "validation_size": 0},
        training={"learning_rate": 2e-2, "max_steps": 8, "warmup_steps": 0, "global_batch_size": 2},
        evaluation={"every_steps": None},
    )
    trained = train_warm(config)
    assert trained.returncode in (0, 4), trained.stderr
    found = advice(tmp_path / "out")
    assert "at a peak learning rate of 0.02" in found["rising loss"]["seen"]
    assert "lower training.learning_rate" in trained.stderr


def test_a_data_set_of_one_text_is_named(base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Say yes.", "response": "yes"}\n' * 80, encoding="utf-8")
    data = {"train": str(rows), "validation_size": 0.1, "test_size": 0}
    config = write_config(tmp_path / "run.json", base, tmp_path / "out", data=data)
    trained = train_warm(config)
    assert trained.returncode == 0, trained.stderr
    assert "71 of 72 training examples repeat" in advice(tmp_path / "out")["constant data"]["seen"]


def test_validation_from_another_domain_is_named(real_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    row = {"instruction": "Сколько времени?", "response": "Сейчас ровно полдень, пора обедать."}
    other.write_text(f"{json.dumps(row)}\n" * 4, encoding="utf-8")
    config = write_config(
        tmp_path / "run.json",
        real_model,
        tmp_path / "out",
        data={**SHORT_ROWS, "validation": str(other), "validation_size": 0},
        training={"max_steps": 10, "learning_rate": 1e-3, "global_batch_size": 2},
        evaluation={"every_steps": 5},
    )
    trained = train_warm(config)
    assert trained.returncode == 0, trained.stderr
    found = advice(tmp_path / "out")["validation from another domain"]
    assert "tokens training never has" in found["seen"]
    assert "data.validation" in found["change"]
