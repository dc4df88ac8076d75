"""From config, profile and model facts to a plan, or to the reasons why there is none. PURE."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from launcher.engines.launch import EngineName
from launcher.fit import (
    PLACE_NAMES,
    Candidate,
    budgets,
    fewest_tokens,
    most_tokens,
    needs_of,
    size_up,
    with_most_tokens,
)
from launcher.memory import GIB
from launcher.plan_request import Request
from launcher.run_plan import Decision, Rejection, RunPlan, TermLine, Usage
from launcher.strategy import Strategy, Zero, make_strategies, saves_in_parts
from trainer.config import Config


@dataclass(frozen=True)
class Outcome:
    """The plan, or None; and what was rejected on the way, the fastest strategy first."""

    plan: RunPlan | None
    rejected: tuple[Rejection, ...]
    smallest: Candidate | None
    """Of those that do not fit, the one that comes nearest; None when all are out of question."""


def make_plan(request: Request) -> Outcome:
    """Take the fastest strategy that fits, with the largest micro-batch that is of use."""
    rejected: list[Rejection] = []
    smallest: Candidate | None = None
    for strategy, objection in _strategies(request):
        if objection:
            rejected.append(Rejection(strategy=strategy.label, reason=objection))
            continue
        least = size_up(request, strategy, fewest_tokens(request))
        if not least.shortfall:
            chosen = with_most_tokens(request, strategy, least)
            return Outcome(_to_plan(request, chosen, rejected), tuple(rejected), smallest)
        needs = _gib(least.estimate.device)
        rejected.append(
            Rejection(strategy=strategy.label, reason=least.shortfall, device_gib=needs)
        )
        if smallest is None or least.estimate.device < smallest.estimate.device:
            smallest = least
    return Outcome(None, tuple(rejected), smallest)


# -- which strategies there are -------------------------------------------------------------------


def _strategies(request: Request) -> Iterator[tuple[Strategy, str]]:
    """Every strategy, and why it is out of the question whatever its memory ("" if it is not)."""
    config = request.config
    asked = config.training.gradient_checkpointing
    own = config.training.deepspeed_config
    configs = request.deepspeed_configs
    strategies = make_strategies(
        configs,
        world_size=request.world_size,
        method="lora" if config.lora.enabled else "full",
        checkpointing=(False, True) if asked == "auto" else (asked,),
    )
    if own is not None:
        known = [strategy for strategy in strategies if strategy.deepspeed_config == own]
        strategies = known or [
            Strategy(f"your {own}", own, Zero.read(configs[own]), bool(is_on), 1.0)
            for is_on in ((False, True) if asked == "auto" else (asked,))
        ]
    for strategy in strategies:
        yield strategy, _objection(request, strategy, is_asked_for=own is not None)


def _objection(request: Request, strategy: Strategy, *, is_asked_for: bool) -> str:
    zero, profile, offloads = strategy.zero, request.profile, strategy.is_offloaded
    optimizer = request.config.training.optimizer
    objections = {
        "DeepSpeed does not run on Apple MPS": profile.device == "mps" and zero.stage > 0,
        "there is no GPU to move memory away from": offloads
        and profile.device != "cuda"
        and not is_asked_for,
        f"profile {profile.name} does not allow offloading (allow_offload: false)": offloads
        and not profile.allow_offload
        and not is_asked_for,
        f"profile {profile.name} names no NVMe disk": profile.nvme is None
        and "nvme" in (zero.optimizer_on, zero.parameters_on),
        "one process has nobody to share with": zero.stage > 0
        and not offloads
        and request.world_size == 1
        and not is_asked_for,
        "ZeRO-3 cannot partition int8 weights": zero.stage == 3
        and request.basis.quantization == "int8",
        f"DeepSpeed's update on the CPU is AdamW, not {optimizer}": offloads
        and optimizer not in ("adamw_torch", "adamw_torch_fused"),
    }
    return next((text for text, holds in objections.items() if holds), "")


def _to_plan(request: Request, chosen: Candidate, rejected: list[Rejection]) -> RunPlan:
    strategy, config = chosen.strategy, request.config
    available = budgets(request.profile, request.processes_per_node)
    engine, _ = _engine(request, strategy)
    in_parts = saves_in_parts(config, strategy.deepspeed_config, strategy.zero)
    return RunPlan(
        profile=request.profile.name,
        device=request.profile.device,
        nodes=request.nodes,
        processes_per_node=request.processes_per_node,
        engine=engine,
        strategy=strategy.label,
        deepspeed_config=strategy.deepspeed_config,
        precision=request.basis.precision,
        tensors_gib=_gib(chosen.estimate.tensors),
        saves_in_parts=in_parts,
        overrides={
            "model.quantization": request.basis.quantization,
            "training.gradient_checkpointing": strategy.checkpointing,
            "training.max_tokens_per_device": chosen.num_tokens,
            "training.global_batch_size": request.global_batch_size,
            "training.batch_size": None,
            "training.gradient_accumulation_steps": None,
            "training.deepspeed_config": strategy.deepspeed_config,
        },
        decisions=_decisions(request, chosen, is_first=not rejected),
        rejected=tuple(rejected),
        usage=tuple(
            Usage(place=PLACE_NAMES[place], gib=_gib(needed), available_gib=_gib(available[place]))
            for place, needed in needs_of(chosen.estimate).items()
            if needed
        ),
        terms=tuple(
            TermLine(
                name=term.name,
                place=term.place,
                gib=_gib(term.bytes),
                when=term.when,
                source=term.source,
            )
            for term in chosen.estimate.terms
        ),
        notes=_notes(request, config, in_parts=in_parts),
    )


def _decisions(request: Request, chosen: Candidate, *, is_first: bool) -> tuple[Decision, ...]:
    strategy = chosen.strategy
    engine, engine_reason = _engine(request, strategy)
    shares = math.ceil(
        request.global_batch_size * request.longest_tokens / request.world_size / chosen.num_tokens
    )
    return (
        Decision(setting="engine", value=engine, reason=engine_reason),
        Decision(
            setting="strategy",
            value=strategy.label,
            reason="the fastest there is, and it fits" if is_first else "the fastest that fits",
        ),
        *request.basis.decisions,
        Decision(
            setting="training.max_tokens_per_device",
            value=str(chosen.num_tokens),
            reason=_tokens_reason(request, chosen),
        ),
        Decision(
            setting="training.global_batch_size",
            value=str(request.global_batch_size),
            reason=f"examples per step, the same on any hardware; at most {shares} micro-batch(es) "
            "for each process",
        ),
    )


def _engine(request: Request, strategy: Strategy) -> tuple[EngineName, str]:
    if request.engine is not None:
        return request.engine, "as asked"
    if request.world_size == 1 and strategy.deepspeed_config is None:
        return "python", "one process needs no launcher"
    return "torchrun", "starts fastest, and starts DeepSpeed's ranks as well"


def _tokens_reason(request: Request, chosen: Candidate) -> str:
    if request.config.training.max_tokens_per_device is not None:
        return "set in the config"
    if chosen.num_tokens == most_tokens(request):
        if chosen.num_tokens == request.longest_tokens:
            return "one example of data.max_length; longer rows are no faster here"
        return "more would be of no use"
    return "as many as fit"


def _notes(request: Request, config: Config, *, in_parts: bool) -> tuple[str, ...]:
    facts = request.facts
    notes = [
        "the data was not read: every row is taken to be full and every token to carry a label",
    ]
    if request.basis.quantization != "none":
        left = facts.frozen_parameters - facts.quantized_parameters - facts.embedding_parameters
        if left > 0.1 * facts.frozen_parameters:
            notes.append(
                f"{left / 1e9:.1f} of {facts.total_parameters / 1e9:.1f} billion weights stay in "
                "16 bits: bitsandbytes quantises linear layers, and these are fused experts"
            )
    if config.model.attention.startswith("flash_attention"):
        notes.append("activations were simulated with sdpa; flash attention needs no mask")
    if request.nodes > 1:
        notes.append("every node needs the model and the data; " + _output(in_parts))
    return tuple(notes)


def _output(in_parts: bool) -> str:
    if in_parts:
        return "and all the same output_dir: every rank saves its own part (checked at the start)"
    return "output_dir is node 0's to write, and may be each node's own"


def _gib(value: float) -> float:
    return round(value / GIB, 3)
