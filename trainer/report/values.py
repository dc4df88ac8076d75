"""JSON of a run by the type that is expected; anything else counts as absent. PURE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]


def as_number(value: Any) -> float | None:
    """Return a number as a float, infinite and NaN included; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def as_finite(value: Any) -> float | None:
    """Return a finite number as a float; None for anything else."""
    number = as_number(value)
    return number if number is not None and math.isfinite(number) else None


def as_text(value: Any) -> str:
    """Return a text, empty when there is none."""
    return value if isinstance(value, str) else ""


def as_object(value: Any) -> Json:
    """Return a JSON object, empty when there is none."""
    return value if isinstance(value, dict) else {}


def as_objects(value: Any) -> list[Json]:
    """Return the objects of a JSON list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def as_texts(value: Any) -> list[str]:
    """Return the texts of a JSON list."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `section.key` -> value; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
