"""The GPU protocol: its arithmetic, its seams, and a whole dry run on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import ours, parity, peers, protocol, runner
from benchmarks.gpu.case import Case
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.ladder import LADDER
from benchmarks.gpu.peers import pad_to_longest, to_example
from benchmarks.gpu.rows import RowSpec, make_rows
from benchmarks.gpu.sizes import dry_sizes, real_sizes
from trainer.training import RankZeroTrainer

TINY = dry_sizes().tiny


def test_padding_loses_no_token_and_labels_none() -> None:
    examples = [to_example(row) for row in make_rows(RowSpec(500, 40, 15, 0.5), 8)]
    batch = pad_to_longest(examples)
    for number, example in enumerate(examples):
        real = batch["attention_mask"][number].bool()
        assert batch["input_ids"][number][real].tolist() == example["input_ids"]
        assert batch["labels"][number][real].tolist() == example["labels"]
        assert (batch["labels"][number][~real] == -100).all()


def test_padding_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 10 and 30 in batches of 8: padded, each batch would count as 240 tokens."""
    rows = [make_rows(RowSpec(500, length), 1)[0] for length in (10, 30) * 40]
    monkeypatch.setattr(peers, "make_rows", lambda *_: rows)
    case = dry_sizes().mixed(TINY).with_(contender="transformers")
    found = peers.measure({"case": case.to_json()}, tmp_path)
    assert all((240 - tokens) % 20 == 0 for tokens in found["tokens"])
    assert sum(found["tokens"]) < 240 * case.steps


def test_parity_sees_a_trainer_that_computes_another_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = dry_sizes().mixed(TINY, labelled=0.5).with_(precision="fp32")
    job = {"kind": "parity", "case": case.to_json()}
    assert parity.measure(job, tmp_path / "right")["equal"]
    step = RankZeroTrainer.training_step

    def wrong(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        inputs["num_labels"] += 1
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(RankZeroTrainer, "training_step", wrong)
    assert not parity.measure(job, tmp_path / "wrong")["equal"]


def test_the_longest_rows_are_tried_with_the_optimizers_state_in_memory(tmp_path: Path) -> None:
    stepper = ours.Stepper(dry_sizes().full(TINY), tmp_path)
    stepper.update()
    adapters = [p for p in stepper.trainer.model.parameters() if p.requires_grad]
    state = stepper.trainer.optimizer.state
    assert all(state[parameter]["exp_avg"].shape == parameter.shape for parameter in adapters)


def test_a_rung_of_the_ladder_turns_off_what_it_says(tmp_path: Path) -> None:
    case = dry_sizes().mixed(TINY)
    shipped = ours.build(case, tmp_path / "shipped")
    assert (shipped.config.model.attention, shipped.loss_plan.way) == ("auto", "chunked")
    packed = next(rung for rung in LADDER if rung.title == "packed rows")
    off = ours.build(case.with_(**packed.changes), tmp_path / "off")
    assert (off.config.model.attention, off.loss_plan.way) == ("sdpa", "full")


class FakeEvent:
    """A CUDA event on a device whose clock ticks by 250 ms."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.waited = False

    def record(self) -> None:
        FakeEvent.now += 250.0
        self.at = FakeEvent.now

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, other: FakeEvent) -> float:
        return other.at - self.at


def test_the_device_clock_waits_for_the_step_before_and_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    clock = Clock(torch.device("cuda"))
    for _ in range(3):
        clock.mark()
    assert [event.waited for event in clock._marks] == [True, True, False]
    assert clock.seconds() == [0.25, 0.25]


def test_a_case_travels_as_json() -> None:
    case = dry_sizes().mixed(TINY).with_(settings=("model.attention=sdpa",))
    assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case


def test_a_job_in_a_process_of_its_own_answers_fails_or_is_ended() -> None:
    job = {"kind": "ceilings", "device": "cpu", "side": 64, "copy_mib": 1}
    found = runner.run_isolated(job, 120)
    assert found["status"] == "ok", found
    assert found["tflops"] > 0
    failed = runner.run_isolated({**job, "side": "wide"}, 120)
    assert failed["status"] == "failed"
    assert "Error" in failed["reason"]
    assert runner.run_isolated(job, 0.05)["reason"] == "not done after 0 s"


def _protocol(monkeypatch: pytest.MonkeyPatch, answer: Any) -> protocol.Protocol:
    monkeypatch.setattr(runner, "run_job", answer)
    return protocol.Protocol(runner.Runner(60, isolated=False), dry_sizes())


def test_the_first_micro_batch_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(job: Any) -> dict[str, Any]:
        if job["case"]["micro_batch_tokens"] > 128:
            return {"status": "no memory", "reason": "too large"}
        return {"status": "ok", "loss": 6.2, "seconds": [1.0], "tokens": [100]}

    tried = _protocol(monkeypatch, answer)
    attempts = [(512, False), (128, False), (64, False)]
    used, found = tried.train("x", tried.sizes.mixed(TINY), attempts)
    assert (used.micro_batch_tokens, found["status"]) == (128, "ok")
    assert len(tried.runner.records) == 2
    assert not tried.problems


def test_numbers_that_cannot_be_true_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"status": "ok", "loss": 6.2, "seconds": [1.0], "tokens": [100]}
    checked = _protocol(monkeypatch, lambda _: found)
    case = checked.sizes.mixed(TINY)
    checked.sizes = real_sizes(80.0)  # utilisation is looked at on a card only
    checked.tflops = 1.01 * 100 * checked.flops_per_token(case) / 1e12
    checked.train("as fast as the card", case, [(64, False)])
    assert not checked.problems
    checked.tflops /= 1.1
    checked.train("faster", case, [(64, False)])
    found["loss"] = 0.1
    checked.tflops = None
    checked.train("learned noise", case, [(64, False)])
    assert [problem.split(":")[0] for problem in checked.problems] == ["faster", "learned noise"]


def test_a_small_card_begins_with_what_can_fit() -> None:
    first = {}
    for memory in (140.0, 80.0, 48.0, 24.0):
        sizes = real_sizes(memory)
        first[memory] = sizes.attempts(sizes.big[1])[0]
    assert list(first.values()) == [(16384, False), (8192, False), (4096, False), (8192, True)]
    sizes = real_sizes(80.0)
    assert sizes.attempts(sizes.small[1])[0] == (16384, False)


def test_without_a_card_the_command_says_so(tmp_path: Path) -> None:
    done = _command(["--output", str(tmp_path / "x.json")], path="/nowhere")
    assert done.returncode == 3
    assert "no NVIDIA card" in done.stdout


def test_a_dry_run_takes_every_path_and_its_numbers_hold(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    done = _command(["--dry-run", "--output", str(output)])
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(output.read_text(encoding="utf-8"))
    assert result["problems"] == []
    assert len(result["tables"]) == 7
    assert result["machine"]["packages"]["torch"] == torch.__version__
    kinds = set()
    for record in result["measurements"]:
        job, found = record["job"], record["result"]
        contender = job.get("case", {}).get("contender", "ours")
        if found["status"] == "skipped":
            assert contender.startswith("trl") or "bitsandbytes" in found["reason"], found
            continue
        assert found["status"] == "ok", found
        kinds.add(job["kind"])
        if job["kind"] in ("ours", "theirs"):
            _check_training(Case.from_json(job["case"]), found)
        if job["kind"] == "parity":
            assert found["equal"]
            assert found["parameters"] == 14 * job["case"]["shape"]["num_hidden_layers"]
    assert kinds >= {"ceilings", "parity", "ours", "theirs", "loss"}
    measured = [r["result"] for r in result["measurements"] if r["job"]["kind"] == "loss"]
    operators = {r["name"]: r for r in measured[0]["results"] if r["tokens"] == 64}
    assert operators["ours"]["gradient_error"] < 1.5 * operators["plain"]["gradient_error"]
    assert operators["plain"]["loss_error"] < 1e-3


def _check_training(case: Case, found: dict[str, Any]) -> None:
    """Every step is there; tokens are those of the rows, padding not among them."""
    assert len(found["seconds"]) == len(found["tokens"]) >= 2
    assert len(found["warm_up_seconds"]) == case.warm_up
    assert min(found["seconds"]) > 0
    if case.rows.mean is None:
        assert set(found["tokens"]) == {case.examples_per_step * case.rows.longest}
    else:
        most = case.examples_per_step * case.rows.longest
        assert all(0 < tokens < most for tokens in found["tokens"])


def _command(arguments: list[str], path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({} if path is None else {"PATH": path})}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=runner.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
