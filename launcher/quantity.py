"""A number of the real world: a float that knows its unit and where it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

STATED_BY = "stated_by"
"""Validation context: who vouches for bare numbers. Without it they are refused."""


class Quantity(float):
    """A float with `unit` and `source`; arithmetic gives plain floats."""

    unit: str
    source: str

    def __new__(cls, value: float, unit: str, source: str) -> Quantity:
        """Make one."""
        made = super().__new__(cls, value)
        made.unit, made.source = unit, source
        return made

    def __getnewargs__(self) -> tuple[float, str, str]:  # type: ignore[override]
        """Support copies and pickles."""
        return float(self), self.unit, self.source


@dataclass(frozen=True)
class In:
    """Annotation of a field that holds a quantity, zero or more, in one unit."""

    unit: str

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        """Accept a Quantity, `{value, unit, source}`, or a number somebody vouches for."""
        return core_schema.with_info_plain_validator_function(
            self._read,
            serialization=core_schema.plain_serializer_function_ser_schema(_to_mapping),
        )

    def _read(self, given: Any, info: core_schema.ValidationInfo) -> Quantity:
        if isinstance(given, Quantity):
            value, unit, source = float(given), given.unit, given.source
        elif isinstance(given, dict) and set(given) == {"value", "unit", "source"}:
            value, unit, source = given["value"], given["unit"], given["source"]
        else:
            value, unit, source = given, self.unit, (info.context or {}).get(STATED_BY, "")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < 0 or not source:
            raise _refusal(
                f"a number of {self.unit}, or {{value: NUMBER, unit: {self.unit}, source: TEXT}}"
            )
        if unit != self.unit:
            raise _refusal(f"in {self.unit} (its unit says {unit})")
        return Quantity(value, unit, str(source))


def _refusal(expected: str) -> PydanticCustomError:
    # The text goes through a template of pydantic's, where braces are placeholders.
    return PydanticCustomError("quantity", "{expected}", {"expected": expected})


def _to_mapping(quantity: Quantity) -> dict[str, Any]:
    value = float(quantity)
    return {
        "value": int(value) if value.is_integer() else value,
        "unit": quantity.unit,
        "source": quantity.source,
    }


Gib = Annotated[Quantity, In("GiB")]
Cores = Annotated[Quantity, In("cores")]
Tflops = Annotated[Quantity, In("TFLOPS")]
GbPerSecond = Annotated[Quantity, In("GB/s")]
ComputeCapability = Annotated[Quantity, In("major.minor")]
