"""What would make a run fit, the cheapest change first. PURE but for the facts it asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launcher.fit import needs_of, short_places
from launcher.memory import GIB
from launcher.plan import Outcome, make_plan
from launcher.plan_request import Basis, Request, can_train_in, choose_basis
from launcher.profile import Profile
from launcher.run_plan import RunPlan
from trainer.config import Config
from trainer.model_facts import ModelFacts

_SHORTEST_USEFUL = 256  # tokens: shorter examples say little
_MOST = 3

FactsOf = Callable[[Config, Basis, Profile], ModelFacts]


@dataclass(frozen=True)
class Remedy:
    """One change after which the run fits."""

    change: str
    device_gib: float
    available_gib: float
    strategy: str

    def __str__(self) -> str:
        return (
            f"{self.change}: peak {self.device_gib:.1f} of {self.available_gib:.1f} GiB "
            f"({self.strategy})"
        )


def find_remedies(request: Request, profiles: Sequence[Profile], facts_of: FactsOf) -> list[Remedy]:
    """Return the first three changes that help, in the order of what they cost the user."""
    found = []
    for change, changed in _changes(request, profiles, facts_of):
        plan = make_plan(changed).plan
        if plan is None:
            continue
        device = plan.usage[0]
        found.append(Remedy(change, device.gib, device.available_gib, plan.strategy))
        if len(found) == _MOST:
            break
    return found


def find_lighter(request: Request, plan: RunPlan, facts_of: FactsOf) -> list[Remedy]:
    """Return the first three changes that need less than a plan which ran out of memory."""
    planned = plan.usage[0].gib
    found = []
    for change, changed in _lighter_changes(request, plan, facts_of):
        lighter = make_plan(changed).plan
        if lighter is not None and lighter.usage[0].gib < planned:
            device = lighter.usage[0]
            found.append(Remedy(change, device.gib, device.available_gib, lighter.strategy))
        if len(found) == _MOST:
            break
    return found


def disk_missing(request: Request, outcome: Outcome) -> str:
    """Say where the run would have the disk it needs; empty unless it lacks that alone. PURE."""
    nearest = outcome.smallest
    if nearest is None or short_places(request, nearest.estimate) != ["disk"]:
        return ""
    needed = math.ceil(10 * needs_of(nearest.estimate)["disk"] / GIB) / 10
    return f"make room, or set output_dir to a disk with {needed:.1f} GiB free"


def _lighter_changes(
    request: Request, plan: RunPlan, facts_of: FactsOf
) -> Iterator[tuple[str, Request]]:
    """From those that only take time."""
    tokens = int(plan.overrides["training.max_tokens_per_device"])
    half = max(request.longest_tokens, tokens // 2)
    if half < tokens:
        setting = f"training.max_tokens_per_device: {half}"
        yield setting, _with(request, "training", max_tokens_per_device=half)
    if not plan.overrides["training.gradient_checkpointing"]:
        setting = "training.gradient_checkpointing: true"
        yield setting, _with(request, "training", gradient_checkpointing=True)
    adapted = ((text, _measured(one, facts_of)) for text, one in _with_adapters(request))
    both = (adapted, _shorter(request))
    for group in both if request.config.lora.enabled else reversed(both):
        yield from group


def lighter_text(plan: RunPlan, remedies: Sequence[Remedy]) -> str:
    """Say what a run that ran out of memory was planned to take, and what would take less."""
    device = plan.usage[0]
    lines = [
        f"the plan predicted a peak of {device.gib:.1f} of {device.available_gib:.1f} GiB; "
        "something else may use this device"
    ]
    if remedies:
        lines.append("what would need less, the cheapest change first:")
        lines += [f"  {number}. {remedy}" for number, remedy in enumerate(remedies, 1)]
    return "\n".join(lines)


def _changes(
    request: Request, profiles: Sequence[Profile], facts_of: FactsOf
) -> Iterator[tuple[str, Request]]:
    """From those that change nothing of what is learned, to those that need other hardware."""
    config = request.config
    training = config.training
    if config.checkpoint.keep_last > 1:
        yield "checkpoint.keep_last: 1", _with(request, "checkpoint", keep_last=1)
    if training.gradient_checkpointing is False:
        yield (
            "training.gradient_checkpointing: true",
            _with(request, "training", gradient_checkpointing=True),
        )
    if training.max_tokens_per_device and training.max_tokens_per_device > request.longest_tokens:
        yield (
            "drop training.max_tokens_per_device",
            _with(request, "training", max_tokens_per_device=None),
        )
    if training.deepspeed_config is not None:
        yield (
            "drop training.deepspeed_config, and let the planner choose",
            _with(request, "training", deepspeed_config=None),
        )
    if training.optimizer != "adamw_8bit" and not config.lora.enabled:
        yield "training.optimizer: adamw_8bit", _with(request, "training", optimizer="adamw_8bit")
    with_adapters = list(_with_adapters(request))
    # Measured when it is their turn: each takes seconds.
    adapted = ((text, _measured(changed, facts_of)) for text, changed in with_adapters)
    # 4-bit weights cost a LoRA run less than shorter examples; full fine-tuning given up, more.
    both = (adapted, _shorter(request))
    for group in both if config.lora.enabled else reversed(both):
        yield from group
    others = [
        one
        for one in profiles
        if one.name != request.profile.name
        and one.device == "cuda"
        and can_train_in(training.precision, one)
    ]
    for profile in others:
        yield f"--profile {profile.name}", _on(request, profile, facts_of)
    for profile in others:
        for text, changed in with_adapters:
            yield f"--profile {profile.name}, {text}", _on(changed, profile, facts_of)


def _with_adapters(request: Request) -> Iterator[tuple[str, Request]]:
    """Train less: adapters in place of everything, or on 4-bit weights."""
    if not request.config.lora.enabled:
        adapted = _with(request, "lora", enabled=True)
        text = "lora.enabled: true, model.quantization"
        yield f"{text}: none", _with(adapted, "model", quantization="none")
        yield f"{text}: nf4", _with(adapted, "model", quantization="nf4")
    elif request.basis.quantization != "nf4":
        yield "model.quantization: nf4", _with(request, "model", quantization="nf4")


def _shorter(request: Request) -> Iterator[tuple[str, Request]]:
    length = request.longest_tokens // 2
    while length >= _SHORTEST_USEFUL:
        changed = _with(request, "data", max_length=length)
        if make_plan(changed).plan is not None:
            yield f"data.max_length: {length}", changed
            return
        length //= 2


def _with(request: Request, section: str, **values: Any) -> Request:
    changed = getattr(request.config, section).model_copy(update=values)
    return replace(request, config=request.config.model_copy(update={section: changed}))


def _measured(request: Request, facts_of: FactsOf) -> Request:
    basis = choose_basis(request.config, request.profile)
    facts = facts_of(request.config, basis, request.profile)
    return replace(request, basis=basis, facts=facts)


def _on(request: Request, profile: Profile, facts_of: FactsOf) -> Request:
    moved = replace(
        request,
        profile=profile,
        nodes=profile.nodes,
        processes_per_node=max(1, profile.gpus_per_node),
        engine=None,
        # The same examples per step as here.
        config=_with(
            request,
            "training",
            global_batch_size=request.global_batch_size,
            batch_size=None,
            gradient_accumulation_steps=None,
        ).config,
    )
    return _measured(moved, facts_of)


def refusal(request: Request, outcome: Outcome, remedies: Sequence[Remedy]) -> str:
    """Say why nothing fits, and what would."""
    lines = [f"this run does not fit profile {request.profile.name}"]
    nearest = outcome.smallest
    if nearest is None:
        lines += [f"  {rejection.strategy}: {rejection.reason}" for rejection in outcome.rejected]
    else:
        lines[0] += f", not even by {nearest.strategy.label}, {nearest.num_tokens} tokens at a time"
        lines.append(f"  it {nearest.shortfall}")
    if remedies:
        lines.append("  what would make it fit, the cheapest change first:")
        lines += [f"    {number}. {remedy}" for number, remedy in enumerate(remedies, 1)]
    elif not disk_missing(request, outcome):
        lines.append("  no single change found here makes it fit")
    return "\n".join(lines)
