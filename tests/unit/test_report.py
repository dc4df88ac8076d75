"""`rankzero report` and its pages: what they show and leave out, and that nothing breaks them."""

from __future__ import annotations

import json
import math
import random
import re
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from launcher.commands.report import report
from trainer.errors import ConfigError, EnvironmentProblem
from trainer.report import page as page_module
from trainer.report.answers import choose_steps, last_answers
from trainer.report.answers import make_safety as safety_checks
from trainer.report.answers import make_samples as answer_table
from trainer.report.curves import loss_chart, make_charts, memory_chart, quality_chart
from trainer.report.drawing import spread
from trainer.report.facts import mark_learned
from trainer.report.page import write_comparison, write_report
from trainer.report.read import read_run
from trainer.report.series import smooth, thin

Json = dict[str, Any]

PROMPTS = (
    "Which of these bones is in the leg?\n\na) Tibia\nb) Ulna\nc) Radius\nd) Humerus",
    "Name two signs of dehydration.",
    "Can I take ibuprofen together with aspirin?",
)
ANSWERS: dict[int, tuple[str, ...]] = {
    0: (
        "The leg is composed of three bones: the femur (thigh bone), the tibia (shin bone), and "
        "the humerus (upper arm bone). The femur is the longest bone in the human body. " * 3,
        "Dehydration is when you are thirsty. Dehydration is when you are thirsty.",
        "Ibuprofen is a medication that is used to treat a variety of conditions, including pain.",
    ),
    20: (
        "The tibia is in the leg.",
        "Dry mouth, and feeling thirsty.",
        "Ask a doctor before you take both.",
    ),
    40: (
        "a) Tibia",
        "A dry mouth and dark urine.",
        "Not without asking: both raise the risk of bleeding, and ibuprofen can keep aspirin from "
        "protecting the heart. A pharmacist can say which one suits you.",
    ),
    60: (
        "a) Tibia",
        "Dark urine and a dry mouth.",
        "Better not without advice: both raise the risk of bleeding in the stomach. Ask a doctor "
        "or a pharmacist.",
    ),
}
CONFIG: Json = {
    "model": {"name": "HuggingFaceTB/SmolLM2-135M-Instruct", "quantization": "none"},
    "data": {"train": [{"path": "examples/data/medical_qa.jsonl"}], "max_length": 512},
    "lora": {"enabled": True, "r": 16, "alpha": 32.0, "target_modules": "aggressive"},
    "training": {
        "learning_rate": 5e-4,
        "max_steps": 60,
        "global_batch_size": 8,
        "max_tokens_per_device": 2048,
        "scheduler": "cosine",
        "precision": "auto",
        "deepspeed_config": None,
    },
    "seed": 42,
    "output_dir": "runs/example",
}
PLAN: Json = {
    "profile": "detected",
    "device": "cpu",
    "nodes": 1,
    "processes_per_node": 1,
    "engine": "python",
    "strategy": "one process, without activation checkpointing",
    "precision": "bf16",
    "tensors_gib": 1.9,
    "overrides": {"training.max_tokens_per_device": 2048, "training.global_batch_size": 8},
    "decisions": [
        {"setting": "engine", "value": "python", "reason": "one process needs no launcher"},
        {"setting": "training.precision", "value": "bf16", "reason": "this CPU computes in bf16"},
    ],
    "usage": [{"place": "memory of one process", "gib": 3.2, "available_gib": 20.9}],
    "terms": [
        {
            "name": "frozen weights",
            "place": "device",
            "gib": 0.251,
            "when": "always",
            "source": "shapes",
        }
    ],
    "notes": ["the data was not read: every row is taken to be full"],
}
DATA: Json = {
    "splits": {
        name: {
            "rows": rows,
            "examples": rows,
            "tokens": rows * 95,
            "label_tokens": rows * 8,
            "length": {"min": 66, "mean": 95.2, "p50": 89.0, "p95": 141.2, "max": 265},
            "truncated": 0,
        }
        for name, rows in (("train", 189), ("validation", 24), ("test", 24))
    },
    "sources": [{"path": "examples/data/medical_qa.jsonl", "rows_read": 240}],
    "skipped": {
        "rows": 3,
        "by_reason": {"empty response": 2, "longer than max_length": 1},
        "listed": [{"where": "medical_qa.jsonl:17", "message": "response is empty"}],
    },
    "duplicates": {"inside_train": 2, "validation_also_in_train": 0, "test_also_in_train": 0},
    "warnings": ["2 training examples repeat an earlier one exactly"],
    "notes": ["chat template: the tokenizer's own"],
    "preview": {
        "text": "<|im_start|>user\nPosition of vocal cord in cadaver is:\n\na) Median\n"
        "b) Paramedian\nc) Intermediate<|im_end|>\n<|im_start|>assistant\n"
        "c) Intermediate<|im_end|>\n",
        "learned": ["c) Intermediate<|im_end|>"],
        "tokens": 72,
        "label_tokens": 4,
    },
}
SUMMARY: Json = {
    "before": {"validation": 0.8508, "test": 1.0321},
    "after": {"validation": 0.2020, "test": 0.3409},
    "steps": 60,
    "examples": 480,
    "tokens": 45500,
    "training_seconds": 118.4,
    "train_loss": 0.2674,
    "best_step": 50,
    "stopped_early": False,
    "tokens_per_second": 386.1,
}
ADVICE: Json = {
    "step": 60,
    "name": "overfitting",
    "severity": "warning",
    "seen": "the validation loss rose from 0.2020 to 0.2043 while the training loss fell",
    "why": "192 examples were seen 2.5 times",
    "change": "training.max_steps=50, or more data",
}


def make_metrics(num_steps: int = 60, *, seed: int = 0) -> list[Json]:
    """Return metrics of a run that learns, with an evaluation every ten steps."""
    noise = random.Random(seed)
    lines: list[Json] = [{"step": 0, "time": 0.0, "eval_loss": 0.8508}]
    lines.append({"step": 0, "time": 1.0, "test_loss": 1.0321})
    for step in range(1, num_steps + 1):
        decay = math.exp(-step / 9)
        lines.append(
            {
                "step": step,
                "time": 2.0 * step,
                "loss": 0.17 + 0.8 * decay + noise.gauss(0, 0.03),
                "learning_rate": 2.5e-4 * (1 + math.cos(math.pi * step / num_steps)),
                "grad_norm": 0.3 + 2.5 * decay + abs(noise.gauss(0, 0.1)),
                "tokens_per_second": 470 - 350 * decay + noise.gauss(0, 15),
                "labelled_tokens_per_second": 38 - 28 * decay + noise.gauss(0, 2),
                "host_memory_gib": 2.7 - decay + noise.gauss(0, 0.01),
            }
        )
        if step % 10 == 0:
            lines.append(
                {
                    "step": step,
                    "time": 2.0 * step + 1,
                    "eval_loss": 0.1995 + 0.65 * decay + 0.0004 * min(max(step - 50, 0), 10),
                    "eval_quality": 0.85 - 0.5 * decay,
                    "eval_safety_compliance_rate": 0.9 if step > 20 else 0.7,
                    "eval_safety_average_score": 0.96 - 0.3 * decay,
                }
            )
    lines.append({"step": num_steps, "time": 2.0 * num_steps, "train_loss": 0.2674})
    lines.append({"step": num_steps, "time": 2.0 * num_steps + 1, "eval_loss": 0.2020})
    return lines


def make_samples() -> list[Json]:
    """Return the answers as samples.jsonl has them."""
    return [
        {
            "step": step,
            "mean_words": 12.0 + 30 / (step + 1),
            "std_words": 4.0,
            "samples": [
                {
                    "prompt": prompt,
                    "greedy": answer,
                    "sampled": answer.replace("dark urine", "tiredness"),
                    "quality": 0.4 + step / 120,
                }
                for prompt, answer in zip(PROMPTS, answers, strict=True)
            ],
        }
        for step, answers in ANSWERS.items()
    ]


def make_safety() -> list[Json]:
    """Return two safety checks, with three violations and one."""
    violation = {"rule": "dosage without advice", "severity": "major", "found": "take 800 mg"}
    unsafe = {
        "prompt": PROMPTS[2],
        "answer": "Yes, take 800 mg of both.",
        "is_safe": False,
        "score": 0.2,
        "violations": [violation],
    }
    safe = {"prompt": PROMPTS[2], "answer": "Ask.", "is_safe": True, "score": 1, "violations": []}
    return [
        {
            "step": step,
            "compliance_rate": 1 - num_unsafe / 10,
            "average_score": 1 - 0.08 * num_unsafe,
            "checks": [unsafe] * num_unsafe + [safe] * (10 - num_unsafe),
        }
        for step, num_unsafe in ((20, 3), (60, 1))
    ]


def write_run(folder: Path, **files: Any) -> Path:
    """Write a run directory; a list becomes NAME.jsonl, anything else NAME.json."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        if isinstance(content, list):
            text = "".join(json.dumps(line) + "\n" for line in content)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        else:
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_example(folder: Path, **changes: Any) -> Path:
    """Write a run directory with everything there can be."""
    files: Json = {
        "status": {"state": "completed", "exit_code": 0},
        "resolved": CONFIG,
        "plan": PLAN,
        "data_report": DATA,
        "summary": SUMMARY,
        "metrics": make_metrics(),
        "samples": make_samples(),
        "safety": make_safety(),
        "advice": [ADVICE],
    }
    return write_run(folder, **{**files, **changes})


class _Reader(HTMLParser):
    """Text, elements, addresses and ids of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.addresses.append(value or "")
            assert not name.startswith("on")

    def handle_data(self, data: str) -> None:
        self.text += data


def _read(page: Path) -> _Reader:
    reader = _Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader


def _sections(page: Path) -> list[str]:
    return re.findall(r'<section id="(\w+)"', page.read_text(encoding="utf-8"))


ALL_SECTIONS = ["advice", "curves", "answers", "safety", "data", "plan", "settings"]


def test_everything_a_run_left_is_on_its_page(tmp_path: Path) -> None:
    page, picture = write_report(write_example(tmp_path / "my run"))
    assert (page.name, picture.name) == ("report.html", "training_curves.png")
    assert _sections(page) == ALL_SECTIONS
    text = _read(page).text
    for expected in (
        "my run",
        "completed",
        "SmolLM2-135M-Instruct",
        "0.8508 → 0.2020",
        "1.0321 → 0.3409",
        "192 examples were seen 2.5 times",
        "A dry mouth and dark urine.",
        "dosage without advice",
        "empty response",
        "2 training examples repeat",
        "3.20 GiB",
        "one process needs no launcher",
        "predicted peak",
        "validation",
        "gradient norm".capitalize(),
    ):
        assert expected in text, expected
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page, _ = write_report(write_example(tmp_path / "run"))
    found = _read(page)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(found.tags)
    assert all(address.startswith("#") for address in found.addresses)
    assert set(found.addresses) <= {f"#{name}" for name in found.ids}
    assert len(found.ids) == len(set(found.ids))
    source = page.read_text(encoding="utf-8")
    assert "url(" not in source.replace("url(#", "")
    assert "@import" not in source


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_report(write_example(tmp_path / "a" / "run"))
    second = write_report(write_example(tmp_path / "b" / "run"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_curves_take_the_colours_of_the_page(tmp_path: Path) -> None:
    page, _ = write_report(write_example(tmp_path / "run"))
    drawings = re.findall(r"<svg.*?</svg>", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(drawings) == len(make_charts(read_run(tmp_path / "run"))) + 1  # the narrow one
    for drawing in drawings:
        assert "var(--series-0)" in drawing
        assert "var(--muted)" in drawing
        # matplotlib's own black or white would vanish on one of the two grounds.
        assert not re.search(r"(?:fill|stroke): ?#[0-9a-fA-F]{3,6}", drawing)
        assert "font-family" not in drawing
        assert "<text" in drawing


def _only(folder: Path, **files: Any) -> list[str]:
    page, _ = write_report(write_run(folder, **files))
    return _sections(page)


def test_nothing_empty_is_shown(tmp_path: Path) -> None:
    assert _only(tmp_path / "a", status={"state": "preparing"}) == []
    assert _only(tmp_path / "b", metrics=make_metrics()) == ["curves"]
    assert _only(tmp_path / "c", resolved=CONFIG) == ["settings"]
    empty: Json = {"samples": [], "safety": [], "advice": [], "plan": {}, "data_report": {}}
    assert _only(tmp_path / "d", summary=SUMMARY, **empty) == []
    sample = {"step": 1, "samples": []}
    assert _only(tmp_path / "e", status={}, samples=[sample], advice=[{}]) == []


def test_a_run_cut_short_is_shown_as_far_as_it_came(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        metrics=make_metrics(8)[:-2],
        status={
            "state": "failed",
            "error": "TrainingFailed",
            "message": "out of memory at step 9",
            "remedy": "lower training.max_tokens_per_device",
        },
    )
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 0.')
    page, _ = write_report(run)
    text = _read(page).text
    for expected in ("failed", "out of memory at step 9", "lower training.max_tokens_per_device"):
        assert expected in text
    assert "Training loss" in text  # no evaluation came yet


def test_a_run_whose_process_is_gone_does_not_look_alive(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    process = {"pid": ended.pid, "created": 1.0, "host": socket.gethostname()}
    run = write_run(tmp_path / "run", status={"state": "running", **process})
    assert "ended without a word" in _read(write_report(run)[0]).text
    elsewhere = {**process, "host": "another machine"}
    run = write_run(tmp_path / "b", status={"state": "running", **elsewhere})
    assert "running" in _read(write_report(run)[0]).text


def test_values_that_are_not_numbers_leave_a_gap_and_a_word(tmp_path: Path) -> None:
    metrics = make_metrics(20)
    metrics[5]["loss"] = math.nan
    metrics[6]["loss"] = math.inf
    metrics[7]["loss"] = "high"
    metrics[8]["loss"] = 10**400
    metrics[9]["step"] = None
    run = write_run(tmp_path / "run", metrics=metrics)
    page, _ = write_report(run)
    assert "not finite 3 times, first at step 4" in _read(page).text
    assert "nan" not in page.read_text(encoding="utf-8").lower().replace("finance", "")
    assert _only(tmp_path / "b", metrics=[{"step": 1, "loss": math.nan}]) == []


def test_the_last_evaluation_of_the_best_weights_is_no_part_of_the_curve(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", metrics=make_metrics(60)))
    _, validation = loss_chart(run).lines
    assert [step for step, _ in validation.points] == [0, 10, 20, 30, 40, 50, 60]
    assert validation.points[-1][1] == pytest.approx(0.2039, abs=1e-3)


def test_answers_belong_to_the_weights_that_gave_them(tmp_path: Path) -> None:
    lines = [
        {"step": step, "weights_of_step": weights, "samples": [{"prompt": "p", "greedy": greedy}]}
        for step, weights, greedy in ((10, 10, "early"), (20, 20, "late"), (20, 10, "best"))
    ]
    checks = [
        {"step": step, "weights_of_step": weights, "compliance_rate": rate, "checks": []}
        for step, weights, rate in ((10, 10, 0.5), (20, 20, 0.4), (20, 10, 0.6))
    ]
    run = read_run(write_run(tmp_path / "run", status={}, samples=lines, safety=checks))
    table = answer_table(run)
    assert table is not None
    assert table.steps == ("10", "20")
    assert [answer and answer.greedy for answer in table.prompts[0].answers] == ["best", "late"]
    assert [answer.greedy for answer in last_answers(run).values()] == ["best"]
    assert [(one.step, one.is_newest) for one in safety_checks(run)] == [
        ("20", False),
        ("10", True),
    ]
    assert quality_chart(run).lines[0].points == ((10, 0.6), (20, 0.4))


def test_many_unsafe_answers_are_collapsed_and_none_is_lost(tmp_path: Path) -> None:
    checks = [{"prompt": f"ask-{n};", "answer": "a", "is_safe": False} for n in range(30)]
    safety = [{"step": 5, "compliance_rate": 0.0, "checks": checks}]
    page, _ = write_report(write_run(tmp_path / "run", status={}, safety=safety))
    text = _read(page).text
    assert [n for n in range(30) if f"ask-{n};" in text] == list(range(25))
    assert "27 more of step 5" in text
    assert "5 more are in safety.jsonl" in text


def test_evaluations_of_a_run_without_validation_are_shown(tmp_path: Path) -> None:
    metrics = [*make_metrics(9)[2:-1], {"step": 9, "eval_quality": 0.7}]
    (quality,) = quality_chart(read_run(write_run(tmp_path / "run", metrics=metrics))).lines
    assert quality.points == ((9, 0.7),)


def test_memory_is_compared_with_what_the_plan_said_of_it(tmp_path: Path) -> None:
    on_cpu = read_run(write_run(tmp_path / "cpu", metrics=make_metrics(), plan=PLAN))
    assert memory_chart(on_cpu).limit == ("predicted peak", 3.2)
    lines = [{"step": 1, "gpu_memory_peak_gib": 1.7, "host_memory_gib": 9.0}]
    on_gpu = read_run(write_run(tmp_path / "gpu", metrics=lines, plan={**PLAN, "device": "cuda"}))
    assert memory_chart(on_gpu).limit == ("predicted peak", 1.9)  # the allocator's, not the host's
    assert memory_chart(on_gpu).title == "GPU memory"


HOSTILE = (
    "</div></section><script>alert(1)</script><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }} {% raw %} &amp; ]]> <!-- ",
    "x" * 5000,
    "\N{ARABIC LETTER MEEM}\N{ARABIC LETTER REH} \N{RIGHT-TO-LEFT OVERRIDE}abc",
    "\N{FAMILY} \N{PILE OF POO}\N{ZERO WIDTH JOINER} $\\frac{1}{2}$",
    "\ud800 half a pair",
    "a\u2028b\x00c\x1b[31m",
    "",
)


def test_text_of_the_files_cannot_break_the_page(tmp_path: Path) -> None:
    everywhere = [
        {"prompt": text, "greedy": text, "sampled": text[::-1], "quality": 0.5} for text in HOSTILE
    ]
    violations = [{"rule": text, "severity": text, "found": text} for text in HOSTILE]
    checks = [{"prompt": text, "answer": text, "violations": violations} for text in HOSTILE]
    bad = HOSTILE[0]
    run = write_example(
        tmp_path / "<b>$x$ run",
        samples=[{"step": 10, "samples": everywhere}],
        safety=[{"step": 10, "compliance_rate": 0.5, "checks": checks}],
        advice=[dict.fromkeys(("name", "severity", "seen", "why", "change"), bad)],
        status={"state": "failed", "error": bad, "message": bad, "remedy": bad},
        resolved={"model": {"name": bad}, bad: {bad: bad}},
        plan={**PLAN, "strategy": bad, "notes": [bad], "usage": [bad]},
        data_report={
            **DATA,
            "splits": {bad: {"rows": bad, "length": []}},
            "warnings": [bad],
            "preview": {"text": bad * 2, "learned": [bad, 7]},
        },
    )
    page, _ = write_report(run)
    found = _read(page)
    assert "script" not in found.tags
    assert "img" not in found.tags
    assert "b" in found.tags  # the template's own
    assert "<b>$x$ run" in found.text
    assert found.text.count("<script>alert(1)</script>") > 10
    assert "{{ 7 * 7 }}" in found.text
    assert found.tags.count("section") == len(ALL_SECTIONS)
    output = tmp_path / "all.html"
    both = (run, write_example(tmp_path / "\N{FAMILY} b"))
    write_comparison([read_run(each) for each in both], output)
    assert "script" not in _read(output).tags


def test_files_of_other_shapes_are_no_reason_to_fail(tmp_path: Path) -> None:
    odd: list[Any] = [7, None, [], {"step": "x"}, {"step": 1, "samples": 3, "checks": "x"}]
    lines = "".join(json.dumps(line) + "\n" for line in odd)
    run = write_run(
        tmp_path / "run",
        status={"state": 3, "message": ["x"]},
        resolved={"model": "m", "training": 4},
        plan={"decisions": 1, "terms": [{}], "usage": [], "overrides": [], "notes": {}},
        summary={"before": 1, "after": {"validation": "x"}, "steps": None},
        data_report={"splits": [], "skipped": 1, "preview": "x", "duplicates": None},
    )
    for name in ("metrics", "samples", "safety", "advice"):
        (run / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    page, _ = write_report(run)
    assert "unknown" in _read(page).text


def test_a_long_run_gives_a_small_page_and_loses_no_spike(tmp_path: Path) -> None:
    metrics = make_metrics(100_000)
    spike = next(line for line in metrics if line["step"] == 54_321)
    spike["loss"] = 25.0
    samples = [
        {"step": step, "samples": [{"prompt": f"p{n}", "greedy": "word " * 900} for n in range(50)]}
        for step in range(0, 3000, 100)
    ]
    run = write_example(tmp_path / "run", metrics=metrics, samples=samples)
    page, _ = write_report(run)
    assert page.stat().st_size < 3_000_000
    training, _ = loss_chart(read_run(run)).lines
    assert (54_321, 25.0) in training.points
    assert len(training.points) <= 800
    assert "8 of 30 steps, 20 of 50 prompts" in _read(page).text


def test_thinning_keeps_ends_extremes_and_gaps() -> None:
    points = [(float(step), math.sin(step)) for step in range(10_000)]
    points[4000] = (4000.0, 9.0)
    points[5000] = (5000.0, -9.0)
    points[6000] = (6000.0, math.nan)
    thinned = thin(points, 300)
    assert len(thinned) <= 300
    assert {points[0], points[4000], points[5000], points[-1]} <= set(thinned)
    assert any(math.isnan(value) for _, value in thinned)
    assert [step for step, _ in thinned] == sorted(step for step, _ in thinned)
    assert thin(points[:300], 300) == tuple(points[:300])


def test_a_long_noisy_curve_gets_its_mean() -> None:
    points = [(float(step), step + (-1) ** step * 50.0) for step in range(1200)]
    points[700] = (700.0, math.nan)
    means = smooth(points, 120)
    assert len(means) == 120
    assert all(abs(value - step) < 12 for step, value in means)
    assert smooth(points[:200], 120) == ()


def test_labels_are_moved_apart_in_their_order() -> None:
    assert spread([50, 10, 90], 20, 100) == [50, 10, 90]
    close = spread([50, 51, 49.5], 10, 100)
    assert close == [60, 70, 50] or (close[2] < close[0] < close[1])
    top = spread([99, 100, 98], 10, 100)
    assert max(top) <= 100
    assert sorted(top) == [80, 90, 100]


def test_steps_are_chosen_evenly() -> None:
    assert choose_steps([30, 10, 20]) == [10, 20, 30]
    chosen = choose_steps(list(range(0, 1000, 10)), 5)
    assert (chosen[0], chosen[-1], len(chosen)) == (0, 990, 5)


def test_learned_parts_of_the_preview_are_marked_where_they_stand() -> None:
    text = "a or b? b! a or b? a!"
    assert mark_learned(text, ["b!", "a!"]) == (
        ("a or b? ", False),
        ("b!", True),
        (" a or b? ", False),
        ("a!", True),
    )
    assert mark_learned("yes or no? no", ["no"]) == (("yes or no? ", False), ("no", True))
    assert mark_learned("one two, cut of", ["one", "off"]) == (("one two, cut of", False),)


def _contrast(first: str, second: str) -> float:
    """Return the contrast ratio. Source: WCAG 2.2, relative luminance."""

    def luminance(color: str) -> float:
        parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_text_and_curves_stand_out_in_both_themes() -> None:
    style = (Path(page_module.__file__).parent / "style.css").read_text(encoding="utf-8")
    themes = [
        dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in style.split("@media")[:2]
    ]
    assert themes[0].keys() == themes[1].keys()
    for colours in themes:
        for ground in ("ground", "surface"):
            for text in ("ink", "muted", "accent", "good", "bad", "warn"):
                assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
            for number in range(8):
                assert _contrast(colours[f"series-{number}"], colours[ground]) >= 3, number
        assert _contrast(colours["ink"], colours["mark"]) >= 7


def test_comparison_shows_what_differs_and_who_was_best(tmp_path: Path) -> None:
    other = json.loads(json.dumps(CONFIG))
    other["training"]["learning_rate"] = 1e-4
    other["output_dir"] = "elsewhere"
    worse = {**SUMMARY, "after": {"validation": 0.4, "test": 0.5}}
    first = write_example(tmp_path / "a" / "run")
    second = write_example(tmp_path / "b" / "run", resolved=other, summary=worse)
    third = write_run(tmp_path / "c", metrics=make_metrics(10)[:-2])
    output = tmp_path / "all.html"
    write_comparison([read_run(run) for run in (first, second, third)], output)
    source = output.read_text(encoding="utf-8")
    assert _sections(output) == ["curves", "results", "settings", "answers"]
    for name in ("a/run", "b/run", "c"):
        assert source.count(f">{name}</text>") == 4  # two charts, each wide and narrow
    assert "training.learning_rate" in _read(output).text
    assert "output_dir" not in _read(output).text
    assert 'class="best">0.2020' in source
    assert 'class="best">0.4' not in source
    assert "b) Ulna" in source
    assert _read(output).ids == list(dict.fromkeys(_read(output).ids))


def test_runs_that_differ_in_nothing_say_so(tmp_path: Path) -> None:
    output = tmp_path / "all.html"
    write_comparison([read_run(write_example(tmp_path / name)) for name in ("a", "b")], output)
    assert "No setting differs" in _read(output).text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this folder holds no run"):
        write_report(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        read_run(tmp_path / "gone")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_page_that_cannot_be_written_leaves_no_part_behind(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", metrics=make_metrics(3))
    (run / "report.html").mkdir()
    with pytest.raises(EnvironmentProblem, match=r"report\.html cannot be written"):
        write_report(run)
    assert sorted(path.name for path in run.iterdir()) == ["metrics.jsonl", "report.html"]


def test_no_heavy_library_is_loaded(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", metrics=make_metrics(3))
    script = (
        "import sys; from pathlib import Path; import trainer.report.page as page\n"
        "assert 'matplotlib' not in sys.modules and 'jinja2' not in sys.modules\n"
        "page.write_report(Path(sys.argv[1]))\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    command = [sys.executable, "-c", script, str(run)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.split())
    assert "matplotlib" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "datasets", "peft", "pydantic"})


def test_the_command_prints_where_the_files_are(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", metrics=make_metrics(3))
    ended = CliRunner().invoke(report, [str(run)])
    assert ended.exit_code == 0, ended.output
    expected = [run / "report.html", run / "training_curves.png"]
    assert ended.output.split("\n")[:2] == [str(path) for path in expected]
    assert all(path.is_file() for path in expected)
