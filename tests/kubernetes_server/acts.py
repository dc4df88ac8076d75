"""What the pods of a scenario do, from scenarios.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SCENARIOS = Path(__file__).with_name("scenarios.yaml")


@dataclass(frozen=True)
class Step:
    """One thing a container does, after a pause."""

    pause: float = 0
    """Seconds before it."""
    waiting: str | None = None
    """The reason it has not started."""
    is_start: bool = False
    log: Sequence[str] = ()
    exit_code: int | None = None
    reason: str | None = None
    message: str = ""
    """Why it waits, or its termination message."""


@dataclass(frozen=True)
class Scenario:
    """What the nodes and the pods do."""

    summary: str
    attempts: Sequence[Sequence[Step]] = ((),)
    """One for each pod of a node, in order; further pods do as the last."""
    on_termination: Sequence[Step] = (Step(exit_code=143, reason="Error"),)
    """What a pod does that is deleted while it runs."""
    gpus: int = 1
    """What a node can give; it has one in any case, as its labels say."""
    gpus_after: float | None = None
    """Seconds after which each node can give one."""
    has_volumes: bool = True
    """Whether claims get theirs."""
    objects: Sequence[dict[str, Any]] = ()
    """Made in the namespace before."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with every request of the commands, instead of an administrator's."""


def load_scenarios(path: Path = SCENARIOS) -> dict[str, Scenario]:
    """Read every scenario."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: _scenario(values) for name, values in content.items()}


def _scenario(values: dict[str, Any]) -> Scenario:
    values = dict(values)
    if "attempts" in values:
        values["attempts"] = [_steps(each) for each in values["attempts"]]
    if "on_termination" in values:
        values["on_termination"] = _steps(values["on_termination"])
    return Scenario(**values)


def _steps(given: Sequence[dict[str, Any]]) -> list[Step]:
    return [Step(**each) for each in given]
