"""A question to the planner, and what the hardware decides of it at once. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from launcher.engines.launch import EngineName
from launcher.profile import Profile
from launcher.run_plan import Decision
from trainer.config import Config
from trainer.errors import EnvironmentProblem
from trainer.model_facts import ModelFacts

Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class Past:
    """What a run that goes on has fixed or shown; None: it is new, or nobody wrote it down."""

    global_batch_size: int | None = None
    save_seconds: float | None = None
    """Of its last checkpoint."""


@dataclass(frozen=True)
class Basis:
    """What the hardware decides of the config before memory is looked at."""

    quantization: str
    precision: Precision
    decisions: tuple[Decision, ...]


def choose_basis(config: Config, profile: Profile) -> Basis:
    """Decide quantisation and precision where the config leaves them to the hardware.

    Raises: EnvironmentProblem when a precision was named that the hardware cannot train in.
    """
    decisions = []
    quantization = config.model.quantization
    if quantization == "auto":
        quantization = profile.quantization if config.lora.enabled else "none"
        reason = f"profile {profile.name}"
        if not config.lora.enabled:
            reason = "full fine-tuning trains the weights themselves"
        decisions.append(Decision(setting="model.quantization", value=quantization, reason=reason))
    precision = config.training.precision
    if precision == "auto":
        precision, reason = _automatic_precision(profile)
        decisions.append(Decision(setting="training.precision", value=precision, reason=reason))
    else:
        _check_precision(precision, profile)
    return Basis(quantization, precision, tuple(decisions))


def _automatic_precision(profile: Profile) -> tuple[Precision, str]:
    """The rule of trainer.precision, for hardware that need not be here."""
    if profile.device == "mps":
        return "fp32", "16-bit training on MPS lacks fused kernels"
    if profile.bf16:
        return "bf16", f"this {'GPU' if profile.device == 'cuda' else 'CPU'} computes in bf16"
    if profile.device == "cuda":
        return "fp16", "this GPU is older than bf16 (compute capability < 8.0)"
    return "fp32", "this CPU has no bf16 instructions"


def can_train_in(precision: str, profile: Profile) -> bool:
    """Whether this hardware has a precision, as trainer.precision will find. PURE."""
    if profile.device == "cpu":
        return precision != "fp16"
    return precision != "bf16" or profile.bf16


def _check_precision(precision: Precision, profile: Profile) -> None:
    if can_train_in(precision, profile):
        return
    raise EnvironmentProblem(
        f"training.precision: {precision} cannot be used on profile {profile.name} "
        f"({profile.device})",
        rule="fp16 needs a GPU; bf16 on a GPU needs compute capability 8.0, on MPS macOS 14",
        fix=f"set training.precision to auto or {'fp32' if precision == 'fp16' else 'fp16'}",
    )


@dataclass(frozen=True)
class Request:
    """One question to the planner."""

    config: Config
    profile: Profile
    facts: ModelFacts
    basis: Basis
    deepspeed_configs: Mapping[str, Mapping[str, Any]]
    """Name -> content: the shipped ones, and the user's own under the name the config gives it."""
    nodes: int
    processes_per_node: int
    engine: EngineName | None = None
    """None: the planner chooses."""
    past: Past = Past()

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node

    @property
    def longest_tokens(self) -> int:
        """No example is longer; the data itself is not read."""
        limit = self.config.data.max_length
        return min(limit, self.facts.max_positions or limit)

    @property
    def global_batch_size(self) -> int:
        training = self.config.training
        if training.global_batch_size is not None:
            return training.global_batch_size
        return self.past.global_batch_size or pair_size(self.config) * self.world_size


def pair_size(config: Config) -> int:
    """Return the examples per process and step that the config's batch pair asks for."""
    training = config.training
    return (training.batch_size or 1) * (training.gradient_accumulation_steps or 1)


def with_kept_batch(basis: Basis, config: Config, past: Past, world_size: int) -> Basis:
    """Add why a batch pair is read as another global batch than it amounts to here."""
    now = pair_size(config) * world_size
    if config.training.global_batch_size is not None or past.global_batch_size in (None, now):
        return basis
    kept = Decision(
        setting="batch_size x accumulation",
        value=f"{past.global_batch_size} per step",
        reason=f"kept from the run's first start; on {world_size} process(es) it would be {now}",
    )
    return replace(basis, decisions=(*basis.decisions, kept))
