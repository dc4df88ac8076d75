"""The plan of a run, as data: what plan.json holds and every later step reads."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from launcher.engines.launch import EngineName
from launcher.grace import LEAST_SECONDS


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Decision(_Part):
    """One derived value and why it is what it is."""

    setting: str
    value: str
    reason: str


class Rejection(_Part):
    """A strategy that was not taken."""

    strategy: str
    reason: str
    device_gib: float | None = None
    """What it needs of one process's device memory; None: it was out of question."""


class TermLine(_Part):
    """One term of the memory model."""

    name: str
    place: str
    gib: float
    when: str
    source: str


class Usage(_Part):
    """Predicted peak of one kind of memory beside what there is. Unit: GiB."""

    place: str
    gib: float
    available_gib: float


class RunPlan(_Part):
    """Everything decided before a run starts."""

    profile: str
    device: Literal["cpu", "cuda", "mps"]
    nodes: int
    processes_per_node: int
    engine: EngineName
    strategy: str
    deepspeed_config: str | None
    precision: Literal["fp32", "fp16", "bf16"]
    tensors_gib: float
    """What the allocator's peak should show on one device."""
    shutdown_timeout_seconds: int = LEAST_SECONDS
    """From a request to stop to SIGKILL: enough to finish a micro-batch and save."""
    saves_in_parts: bool = False
    """Every rank writes its own part of a checkpoint: several nodes need one output_dir."""
    overrides: dict[str, Any]
    """Settings the plan fixes in the run's config, by dotted name."""
    decisions: tuple[Decision, ...]
    rejected: tuple[Rejection, ...]
    usage: tuple[Usage, ...]
    terms: tuple[TermLine, ...]
    notes: tuple[str, ...]

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node
