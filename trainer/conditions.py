"""What figures of a run must be, such as `eval_loss: "<= 1.2"`. PURE, torch-free."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

Figure = Literal[
    "eval_loss", "test_loss", "train_loss", "safety.compliance_rate", "safety.average_score"
]
_HOLDS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_PATTERN = r"^\s*(<=|>=|<|>)\s*([-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?)\s*$"
_EXPECTED = "one of < <= > >= and a number, such as '<= 1.2'"


def _parse(condition: str) -> tuple[str, float] | None:
    found = re.fullmatch(_PATTERN, condition)
    if found is None or not math.isfinite(float(found[2])):
        return None
    return found[1], float(found[2])


def _checked(value: Any) -> str:
    if not isinstance(value, str) or _parse(value) is None:
        raise PydanticCustomError("condition", _EXPECTED)
    return value


Condition = Annotated[
    str, BeforeValidator(_checked), WithJsonSchema({"type": "string", "pattern": _PATTERN})
]
Requirements = dict[Figure, Condition]


@dataclass(frozen=True)
class Outcome:
    """A required figure, measured or not."""

    name: str
    condition: str
    measured: float | None
    is_met: bool


def judge(required: Mapping[Figure, Condition], figures: Mapping[str, float]) -> list[Outcome]:
    """Hold each required figure against what was measured; one that was not does not meet it."""
    outcomes = []
    for name, condition in required.items():
        parsed, measured = _parse(condition), figures.get(name)
        is_met = False
        if parsed is not None and measured is not None:
            symbol, bound = parsed
            is_met = bool(_HOLDS[symbol](measured, bound))
        outcomes.append(Outcome(name, condition, measured, is_met))
    return outcomes
