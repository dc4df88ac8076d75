"""What the planner decides, on known models and shipped profiles."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launcher.fit import to_job, to_machine
from launcher.grace import LEAST_SECONDS
from launcher.memory import GIB, MemoryEstimate, Term, estimate_memory
from launcher.plan import Outcome, make_plan
from launcher.plan_request import Past, Request, choose_basis, with_kept_batch
from launcher.plan_table import print_plan
from launcher.planning import with_grace
from launcher.profile import Nvme, Profile
from launcher.profile_file import load_profile, shipped_profiles
from launcher.remedies import find_lighter, find_remedies, lighter_text
from launcher.run_plan import RunPlan
from launcher.strategy import LADDER, Strategy, Zero, make_strategies
from trainer.config import Config, load_config
from trainer.model_facts import ActivationFacts, ModelFacts, Polynomial

TESTS = Path(__file__).parents[1]
CONFIGS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in (TESTS.parent / "deepspeed_configs").glob("*.json")
}
METHODS: dict[str, dict[str, Any]] = {
    "qlora": {"model": {"quantization": "nf4"}},
    "lora": {"model": {"quantization": "none"}},
    "full": {"lora": {"enabled": False}},
}
# Published parameter counts, in billions (tests/model_configs/README.md).
PUBLISHED = {
    "llama-2-13b": 13.02,
    "llama-3.1-8b": 8.03,
    "llama-3.1-70b": 70.55,
    "llama-3.2-1b": 1.24,
    "mistral-7b-v0.1": 7.24,
    "qwen2.5-7b": 7.62,
    "phi-4-mini": 3.84,
    "qwen3-30b-a3b": 30.53,
}
SHARING = ("ZeRO-2,", "ZeRO-3,")
MACHINES = ("single-24gb", "multi-a100-40gb", "multi-a100-80gb")

Make = Callable[..., Request]


def facts_of(model: str, method: str) -> ModelFacts:
    path = TESTS / "model_facts" / f"{model}.{method}.json"
    return ModelFacts.model_validate_json(path.read_bytes())


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(
        model: str,
        profile: str | Profile,
        method: str,
        *,
        processes: int | None = None,
        **changes: Any,
    ) -> Request:
        known = load_profile(profile) if isinstance(profile, str) else profile
        config = make_config(tmp_path, model, {**METHODS[method], **changes})
        return Request(
            config=config,
            profile=known,
            facts=facts_of(model, method),
            basis=choose_basis(config, known),
            deepspeed_configs=CONFIGS,
            nodes=known.nodes,
            processes_per_node=processes or max(1, known.gpus_per_node),
        )

    return make


def make_config(folder: Path, model: str, sections: dict[str, Any]) -> Config:
    values: dict[str, Any] = {
        "model": {"name": model},
        "data": {"train": "rows.jsonl", "max_length": 2048},
        "output_dir": str(folder / "run"),
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    path = folder / "run.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return load_config(path)


def known_facts(config: Config, basis: Any, _: Profile) -> ModelFacts:
    method = "full" if not config.lora.enabled else "lora"
    return facts_of(config.model.name, "qlora" if basis.quantization == "nf4" else method)


def remedies_of(request: Request) -> list[Any]:
    return find_remedies(request, shipped_profiles(), known_facts)


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_are_counted_as_their_publisher_does(model: str) -> None:
    for method in METHODS:
        billions = facts_of(model, method).total_parameters / 1e9
        assert billions == pytest.approx(PUBLISHED[model], abs=0.006)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("profile", MACHINES)
@pytest.mark.parametrize("model", PUBLISHED)
def test_every_model_gets_a_plan_with_reasons_or_a_way_out(
    model: str, profile: str, method: str, make: Make
) -> None:
    request = make(model, profile, method)
    outcome = make_plan(request)
    if outcome.plan is None:
        assert all(rejection.reason for rejection in outcome.rejected)
        remedies = remedies_of(request)
        assert remedies
        assert all(remedy.device_gib <= remedy.available_gib for remedy in remedies)
        return
    plan = outcome.plan
    assert all(decision.reason for decision in plan.decisions)
    assert all(rejection.reason for rejection in plan.rejected)
    assert all(usage.gib <= usage.available_gib for usage in plan.usage)
    assert all(term.source for term in plan.terms)


def strategy_of(outcome: Outcome) -> str:
    assert outcome.plan is not None
    return outcome.plan.strategy


def test_a_7b_in_4_bits_fits_24_gb_with_room(make: Make) -> None:
    on = {"training": {"gradient_checkpointing": True, "max_tokens_per_device": 2048}}
    plan = make_plan(make("mistral-7b-v0.1", "single-24gb", "qlora", **on)).plan
    assert plan is not None
    assert plan.usage[0].gib < 0.6 * plan.usage[0].available_gib


def test_an_8b_in_full_does_not_fit_24_gb(make: Make) -> None:
    request = make("llama-3.1-8b", "single-24gb", "full")
    assert make_plan(request).plan is None
    assert any("lora.enabled: true" in remedy.change for remedy in remedies_of(request))


def test_what_needs_less_than_a_plan_that_ran_out_of_memory(make: Make) -> None:
    request = make("llama-3.2-1b", "single-24gb", "lora")
    plan = make_plan(request).plan
    assert plan is not None
    lighter = find_lighter(request, plan, known_facts)
    assert [one.change.partition(":")[0] for one in lighter][:2] == [
        "training.max_tokens_per_device",
        "training.gradient_checkpointing",
    ]
    assert all(one.device_gib < plan.usage[0].gib for one in lighter)
    text = lighter_text(plan, lighter)
    assert f"peak of {plan.usage[0].gib:.1f}" in text
    assert all(one.change in text for one in lighter)


def test_a_70b_with_lora_fits_8_x_80_gb_without_offload(make: Make) -> None:
    outcome = make_plan(make("llama-3.1-70b", "multi-a100-80gb", "lora"))
    assert outcome.plan is not None
    assert outcome.plan.deepspeed_config == "zero3"


def test_a_13b_in_full_on_4_x_40_gb_needs_offload(make: Make) -> None:
    outcome = make_plan(make("llama-2-13b", "multi-a100-40gb", "full"))
    assert outcome.plan is not None
    assert "offload" in (outcome.plan.deepspeed_config or "")
    rejected = {rejection.strategy: rejection.reason for rejection in outcome.plan.rejected}
    assert "needs" in rejected["ZeRO-3, with activation checkpointing"]


def test_a_full_disk_is_mended_by_keeping_less(make: Make) -> None:
    """Four checkpoints of 30 billion weights and moments take more than the profile's 1,000 GiB."""
    request = make("qwen3-30b-a3b", "multi-a100-80gb", "full")
    outcome = make_plan(request)
    assert outcome.plan is None
    assert any("GiB of disk" in rejection.reason for rejection in outcome.rejected)
    assert remedies_of(request)[0].change == "checkpoint.keep_last: 1"


def test_a_small_model_needs_nothing_special(make: Make) -> None:
    outcome = make_plan(make("llama-3.2-1b", "multi-a100-80gb", "lora"))
    assert strategy_of(outcome) == "DDP, without activation checkpointing"
    assert outcome.plan is not None
    assert outcome.plan.engine == "torchrun"
    assert outcome.plan.overrides["training.deepspeed_config"] is None


def test_the_global_batch_does_not_depend_on_the_machine(make: Make) -> None:
    sizes = set()
    for profile in MACHINES:
        plan = make_plan(make("llama-3.2-1b", profile, "qlora")).plan
        assert plan is not None
        sizes.add(plan.overrides["training.global_batch_size"])
    assert sizes == {16}
    pair = {"training": {"batch_size": 2, "gradient_accumulation_steps": 3}}
    plan = make_plan(make("llama-3.2-1b", "multi-a100-40gb", "lora", **pair)).plan
    assert plan is not None
    assert plan.overrides["training.global_batch_size"] == 2 * 3 * 4


def test_tokens_are_as_many_as_fit(make: Make) -> None:
    request = make("mistral-7b-v0.1", "single-24gb", "qlora", data={"max_length": 512})
    outcome = make_plan(request)
    assert outcome.plan is not None
    tokens = outcome.plan.overrides["training.max_tokens_per_device"]
    assert 512 < tokens < 16 * 512
    more = {"max_tokens_per_device": tokens + 256, "gradient_checkpointing": False}
    refused = make(
        "mistral-7b-v0.1", "single-24gb", "qlora", data={"max_length": 512}, training=more
    )
    assert make_plan(refused).plan is None


def test_what_the_config_says_is_kept_or_refused(make: Make) -> None:
    asked = {"training": {"gradient_checkpointing": False, "deepspeed_config": "zero3"}}
    outcome = make_plan(make("llama-3.1-8b", "multi-a100-80gb", "lora", **asked))
    assert strategy_of(outcome) == "ZeRO-3, without activation checkpointing"
    # Without checkpointing even ZeRO-3 cannot hold 80 layers at this length.
    off = {"training": {"gradient_checkpointing": False}, "data": {"max_length": 8192}}
    refused = make("llama-3.1-70b", "multi-a100-80gb", "lora", **off)
    assert make_plan(refused).plan is None
    assert remedies_of(refused)[0].change == "training.gradient_checkpointing: true"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"allow_offload": False}, "does not allow offloading"),
        ({}, "names no NVMe disk"),
    ],
)
def test_a_profile_limits_the_ladder(changes: dict[str, Any], reason: str, make: Make) -> None:
    profile = load_profile("multi-a100-40gb").model_copy(update=changes)
    outcome = make_plan(make("llama-3.1-70b", profile, "full"))
    assert outcome.plan is None
    assert any(reason in rejection.reason for rejection in outcome.rejected)


def test_one_process_has_nobody_to_share_with(make: Make) -> None:
    outcome = make_plan(make("llama-3.1-70b", "single-80gb", "lora"))
    assert outcome.plan is None
    sharing = [rejected for rejected in outcome.rejected if rejected.strategy[:7] in SHARING]
    reasons = {rejected.reason for rejected in sharing if "host" not in rejected.strategy}
    assert "one process has nobody to share with" in reasons
    assert not any("needs" in reason for reason in reasons)


def test_a_strategy_that_is_out_of_question_needs_no_facts(make: Make) -> None:
    request = make("llama-3.1-8b", "single-24gb", "full")
    plain = {key: value for key, value in request.facts.activations.items() if "autocast" in key}
    known = request.facts.model_copy(update={"activations": plain})
    assert make_plan(replace(request, facts=known)).plan is None


def test_the_ladder_begins_with_the_fastest() -> None:
    strategies = make_strategies(CONFIGS, world_size=4, method="lora", checkpointing=(False, True))
    times = [strategy.relative_time for strategy in strategies]
    assert times == sorted(times)
    assert strategies[0].label == "DDP, without activation checkpointing"
    assert strategies[-1].deepspeed_config == "zero3_nvme"


def test_experts_that_stay_in_16_bits_are_said(make: Make) -> None:
    plan = make_plan(make("qwen3-30b-a3b", "multi-a100-80gb", "qlora")).plan
    assert plan is not None
    assert any("stay in 16 bits" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("method", "training", "in_parts"),
    [
        ("lora", {"deepspeed_config": "zero3"}, False),
        ("lora", {"deepspeed_config": "zero3", "optimizer": "adamw_8bit"}, True),
        ("lora", {"deepspeed_config": "zero3_nvme"}, True),
        ("full", {"deepspeed_config": "zero3"}, True),
        ("lora", {"optimizer": "adamw_8bit"}, False),
    ],
)
def test_nodes_that_save_in_parts_are_told_to_share_their_output(
    method: str, training: dict[str, str], in_parts: bool, make: Make
) -> None:
    size = {"value": 2000, "unit": "GiB", "source": "made up"}
    disk = Nvme.model_validate({"path": "/nvme", "gib": size})
    nodes = load_profile("multi-node-a100-80gb").model_copy(update={"nvme": disk})
    plan = make_plan(make("llama-3.2-1b", nodes, method, training=training)).plan
    assert plan is not None
    assert plan.nodes == 2
    assert plan.saves_in_parts == in_parts
    told = next(note for note in plan.notes if "output_dir" in note)
    assert ("all the same output_dir" in told) == in_parts
    alone = make_plan(make("llama-3.2-1b", "multi-a100-80gb", method, training=training)).plan
    assert alone is None or not any("output_dir" in note for note in alone.notes)


def test_every_rung_of_the_ladder_is_shipped() -> None:
    assert {name for name in LADDER if name} <= set(CONFIGS)


# -- the memory model, by hand ---------------------------------------------------------------------

FLAT = Polynomial(constant=0, linear=1000, quadratic=0)
BY_HAND = ModelFacts(
    architecture="Made up",
    num_layers=2,
    hidden_size=8,
    vocabulary_size=100,
    max_positions=None,
    total_parameters=1_000_000,
    trainable_parameters=1_000_000,
    frozen_parameters=0,
    frozen_bytes=0,
    buffer_bytes=0,
    largest_matrix_parameters=1000,
    largest_trained_parameters=1000,
    embedding_parameters=0,
    quantized_parameters=0,
    activations={
        f"{casting}, without activation checkpointing": ActivationFacts(
            saved=FLAT, forward=FLAT, backward=FLAT,
            head_constant=0, head_per_token=0, head_per_label=10,
        )
        for casting in ("autocast", "cast")
    },
)  # fmt: skip


def estimate(zero: Zero, processes: int, tokens: int = 100) -> dict[str, float]:
    """Bytes by term on the device, for full fine-tuning with AdamW in bf16."""
    profile = load_profile("multi-a100-80gb")
    config = Config.model_validate(
        {
            "model": {"name": "m"},
            "data": {"train": "x"},
            "lora": {"enabled": False},
            "output_dir": "x",
        }
    )
    job = to_job(config, BY_HAND, "bf16", tokens)
    strategy = Strategy("", None if zero.stage == 0 else "x", zero, False, 1.0)
    terms = estimate_memory(job, strategy, to_machine(profile, 1, processes)).terms
    return {term.name: term.bytes for term in terms if term.place == "device"}


def test_plain_training_holds_16_bytes_a_parameter() -> None:
    terms = estimate(Zero(), 1)
    state = ("trained weights", "gradients", "optimizer state")
    assert sum(terms[name] for name in state) == 16 * 1_000_000
    assert terms["update temporaries"] == 4 * 1_000_000
    assert terms["activations and logits"] == 1000 * 100 + 10 * 100
    assert "communication" not in terms
    assert estimate(Zero(), 2)["DDP buckets"] == 4 * 1_000_000


def test_zero_shares_what_it_says() -> None:
    two = estimate(Zero(stage=2, reduce_bucket=1000), 4)
    assert two["trained weights"] == 2 * 1_000_000
    assert two["gradients"] == two["gradients, flat"] == 4 * 1_000_000 / 4
    assert two["optimizer state"] == 12 * 1_000_000 / 4
    assert two["reduce buckets"] == 2 * 2 * 1000
    three = estimate(Zero(stage=3, reduce_bucket=1000, sub_group=10**9), 4)
    assert three["trained weights"] == 2 * 1_000_000 / 4
    assert three["reduce buckets"] == 2 * 1000


def test_offloading_moves_state_to_the_host_and_keeps_its_size() -> None:
    zero = Zero(stage=3, optimizer_on="cpu", parameters_on="cpu", sub_group=10**9)
    terms = estimate(zero, 4)
    assert "optimizer state" not in terms
    assert "trained weights" not in terms
    assert "gradients" not in terms


def test_two_nodes_halve_what_a_node_holds(make: Make) -> None:
    request = make("llama-2-13b", "multi-a100-80gb", "full", processes=8)
    zero = replace(Zero.read(CONFIGS["zero3_offload"]))
    strategy = Strategy("", "zero3_offload", zero, True, 1.0)
    job = to_job(request.config, request.facts, "bf16", 2048)
    one, two = (
        estimate_memory(job, strategy, to_machine(request.profile, nodes, 8)) for nodes in (1, 2)
    )

    def host_state(found: Any) -> float:
        return sum(t.bytes for t in found.terms if t.name == "optimizer state") / GIB

    assert host_state(two) == pytest.approx(host_state(one) / 2)


def test_the_allocators_peak_is_that_of_its_own_larger_phase() -> None:
    """Slack belongs to the micro-batch: where the update is the peak, there is none to take off."""
    terms = (
        Term("process and libraries", 5, "", "device"),
        Term("trained weights", 100, "", "device"),
        Term("activations and logits", 40, "", "device", "micro-batch"),
        Term("allocator slack", 20, "", "device", "micro-batch"),
        Term("update temporaries", 50, "", "device", "optimizer step"),
    )
    estimated = MemoryEstimate(terms)
    assert estimated.device == 5 + 100 + 60
    assert estimated.tensors == 100 + 50


# -- what a run that goes on keeps, and how long its ranks may save --------------------------------

PAIR = {"training": {"batch_size": 2, "gradient_accumulation_steps": 3}}


def planned(request: Request) -> RunPlan:
    outcome = make_plan(request)
    assert outcome.plan is not None
    return with_grace(outcome.plan, request)


@pytest.mark.parametrize(
    ("batch", "kept", "size"),
    [
        (PAIR, None, 24),
        (PAIR, 6, 6),
        (PAIR, 24, 24),
        ({"training": {"global_batch_size": 8}}, 6, 8),
    ],
    ids=["new", "begun on one GPU", "begun on as many", "said in the config"],
)
def test_a_batch_pair_means_what_it_meant_at_first(
    batch: dict[str, Any], kept: int | None, size: int, make: Make
) -> None:
    request = make("llama-3.2-1b", "multi-a100-40gb", "lora", **batch)
    past = Past(global_batch_size=kept)
    basis = with_kept_batch(request.basis, request.config, past, request.world_size)
    plan = planned(replace(request, past=past, basis=basis))
    assert plan.overrides["training.global_batch_size"] == size
    reasons = [each.reason for each in plan.decisions]
    assert any("kept from the run's first start" in reason for reason in reasons) == (size == 6)


def test_the_time_to_save_grows_with_what_is_saved(make: Make) -> None:
    adapters = make("llama-3.2-1b", "multi-a100-80gb", "lora")
    weights = make("llama-3.1-8b", "multi-a100-80gb", "full")
    assert planned(adapters).shutdown_timeout_seconds == LEAST_SECONDS
    # 8.03 billion fp32 weights and two moments at 100 MB/s: 964 s, and twice that.
    seconds = planned(weights).shutdown_timeout_seconds
    assert seconds > 2 * 964
    kept_more = weights.config.checkpoint.model_copy(update={"keep_last": 1})
    config = weights.config.model_copy(update={"checkpoint": kept_more})
    assert planned(replace(weights, config=config)).shutdown_timeout_seconds == pytest.approx(
        seconds, abs=1
    )
    assert any(f"{seconds} s" == each.value for each in planned(weights).decisions)


def test_the_time_to_save_is_at_least_three_times_the_last_save(make: Make) -> None:
    request = replace(make("llama-3.2-1b", "single-24gb", "lora"), past=Past(save_seconds=70.2))
    assert planned(request).shutdown_timeout_seconds == 211
    quick = replace(request, past=Past(save_seconds=0.1))
    assert planned(quick).shutdown_timeout_seconds == LEAST_SECONDS


def test_settings_and_figures_stay_whole_on_a_terminal_of_80_columns(make: Make) -> None:
    outcome = make_plan(make("mistral-7b-v0.1", "single-24gb", "qlora"))
    assert outcome.plan is not None
    written = io.StringIO()
    print_plan(Console(file=written, width=80), outcome.plan, ("a reason",))
    lines = written.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    for decision in outcome.plan.decisions:
        assert any(line.startswith(f"{decision.setting} ") for line in lines), decision.setting
    assert any(line.split() == ["GiB", "of", "peak", "there", "are", "share"] for line in lines)
