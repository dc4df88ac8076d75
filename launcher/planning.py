"""From the command line to a plan: profile, model facts and DeepSpeed configs are fetched here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from launcher.engines.launch import EngineName
from launcher.grace import micro_batch_seconds, shutdown_grace, slow_flops_per_second
from launcher.hardware import resolve_profile
from launcher.memory import GIB
from launcher.model_facts import Training, find_facts
from launcher.plan import Outcome, make_plan
from launcher.plan_request import Basis, Past, Request, choose_basis, with_kept_batch
from launcher.profile import Profile
from launcher.profile_file import shipped_profiles
from launcher.remedies import (
    disk_missing,
    find_lighter,
    find_remedies,
    lighter_text,
    refusal,
)
from launcher.run_plan import Decision, RunPlan
from launcher.strategy import LADDER, Zero
from trainer.config import Config, Quantization, load_config
from trainer.deepspeed_config import (
    check_deepspeed_config,
    completed,
    find_deepspeed_config,
    load_deepspeed_config,
    with_nvme,
)
from trainer.errors import ConfigError, EnvironmentProblem
from trainer.model_facts import Casting, ModelFacts
from trainer.shipped import shipped_folder


@dataclass(frozen=True)
class Target:
    """Where a run is to go, as the command line says it. None: the profile's own number."""

    profile: str = "auto"
    engine: EngineName | None = None
    processes: int | None = None
    nodes: int | None = None


@dataclass(frozen=True)
class PlannedRun:
    """A plan, the config it belongs to with every choice filled in, and how the profile came."""

    config: Config
    plan: RunPlan
    profile: Profile
    reasons: tuple[str, ...]
    largest_parameter: int
    """Elements of the model's largest single parameter."""
    request: Request
    """What the plan was made of."""


def plan_run(
    path: Path, overrides: Sequence[str], target: Target, past: Past | None = None
) -> PlannedRun:
    """Plan a config file for a target; `past`: of the run that goes on.

    Raises: ConfigError; EnvironmentProblem (exit 3) when nothing fits, with what would.
    """
    config = load_config(path, overrides)
    detected = resolve_profile(target.profile, Path(config.output_dir))
    request = _request(config, detected.profile, target, past or Past())
    outcome = make_plan(request)
    if outcome.plan is None:
        raise _does_not_fit(request, outcome)
    plan = with_grace(outcome.plan, request)
    fixed = [f"{name}={json.dumps(value)}" for name, value in plan.overrides.items()]
    resolved = load_config(path, [*overrides, *fixed])
    facts = request.facts
    largest = max(facts.largest_matrix_parameters, facts.vocabulary_size * facts.hidden_size)
    return PlannedRun(resolved, plan, detected.profile, detected.reasons, largest, request)


def what_needs_less(planned: PlannedRun) -> str:
    """Say what to change after a run ran out of memory that was planned to fit."""
    return lighter_text(planned.plan, find_lighter(planned.request, planned.plan, _facts))


def with_grace(plan: RunPlan, request: Request) -> RunPlan:
    """Add to a plan how long its ranks may take to save and end. PURE."""
    config = request.config
    kept = sum(term.gib for term in plan.terms if term.name == "checkpoints") * GIB
    grace = shutdown_grace(
        # As launcher.memory counts the disk: one more than are kept.
        checkpoint_bytes=kept / (config.checkpoint.keep_last + 1),
        micro_batch_seconds=micro_batch_seconds(
            request.facts,
            plan.overrides["training.max_tokens_per_device"],
            flops_per_second=slow_flops_per_second(request.profile),
            relative_time=_relative_time(plan, request),
        ),
        last_save_seconds=request.past.save_seconds,
    )
    shown = Decision(setting="shutdown timeout", value=f"{grace.seconds} s", reason=grace.reason)
    return plan.model_copy(
        update={
            "shutdown_timeout_seconds": grace.seconds,
            "decisions": (*plan.decisions, shown),
        }
    )


def _relative_time(plan: RunPlan, request: Request) -> float:
    """Return the time of a step by the slowest strategy that puts things where this one does."""
    name = plan.deepspeed_config
    zero = Zero() if name is None else Zero.read(request.deepspeed_configs[name])
    places = (zero.optimizer_on, zero.parameters_on)
    alike = "zero3_nvme" if "nvme" in places else "zero3_offload" if "cpu" in places else "zero3"
    _, time = LADDER[alike if zero.stage else None]
    return 1.5 * time if plan.overrides["training.gradient_checkpointing"] else time


def _request(config: Config, profile: Profile, target: Target, past: Past) -> Request:
    nodes = target.nodes or profile.nodes
    processes = target.processes or max(1, profile.gpus_per_node)
    basis = with_kept_batch(choose_basis(config, profile), config, past, nodes * processes)
    if profile.device != "cpu" and processes > max(1, profile.gpus_per_node):
        raise ConfigError(
            f"--processes {processes} on profile {profile.name} with {profile.gpus_per_node} GPUs",
            rule="every process has a GPU of its own",
            fix=f"use --processes {profile.gpus_per_node} or fewer, or another profile",
        )
    deepspeed_configs = _deepspeed_configs(config, basis)
    # Only DeepSpeed casts, and only where there is something to share or to offload.
    may_cast = nodes * processes > 1 or profile.allow_offload or config.training.deepspeed_config
    castings: tuple[Casting, ...] = ("autocast", "cast") if may_cast else ("autocast",)
    return Request(
        config=config,
        profile=profile,
        facts=_facts(config, basis, profile, castings),
        basis=basis,
        deepspeed_configs=deepspeed_configs,
        nodes=nodes,
        processes_per_node=processes,
        engine=target.engine,
        past=past,
    )


def _facts(
    config: Config,
    basis: Basis,
    profile: Profile,
    castings: tuple[Casting, ...] = ("autocast", "cast"),
) -> ModelFacts:
    training = Training(basis.quantization, basis.precision, profile.device, castings)
    return find_facts(config, training)


def _deepspeed_configs(config: Config, basis: Basis) -> dict[str, dict[str, Any]]:
    """Read the shipped configs, and the one the run config names.

    Raises: ConfigError when that one contradicts the run config.
    """
    found = {
        path.stem: load_deepspeed_config(path)
        for path in sorted(shipped_folder("deepspeed_configs").glob("*.json"))
    }
    own = config.training.deepspeed_config
    if own is not None:
        path = find_deepspeed_config(own)
        found[own] = load_deepspeed_config(path)
        filled = completed(found[own])
        if isinstance(filled.get("zero_optimization"), dict):
            # The folder on NVMe and its buffers are the profile's, filled in when the run starts.
            filled = with_nvme(filled, Path("/nvme"), largest_parameter=1, world_size=1)
        quantization = cast(Quantization, basis.quantization)
        check_deepspeed_config(path, filled, config.training, quantization=quantization)
    return found


def _does_not_fit(request: Request, outcome: Outcome) -> EnvironmentProblem:
    disk = disk_missing(request, outcome)
    # Another profile is another machine; this one may have another disk.
    remedies = find_remedies(request, [] if disk else shipped_profiles(), _facts)
    first = f"the first of these: {remedies[0].change}" if remedies else ""
    return EnvironmentProblem(
        refusal(request, outcome, remedies),
        rule="a run starts only when everything it needs is there",
        fix=", or ".join(filter(None, (disk, first))) or "use a smaller model",
    )
