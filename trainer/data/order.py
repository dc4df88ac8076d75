"""The number every training example is sorted by, when the order is not a shuffle."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.problems import RowProblem
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.data.encode import EncodedChunk

RowKey = Callable[[dict[str, Any]], float]


def row_key(order: str) -> RowKey | None:
    """Return the function that gives a row its key; None when the row itself does not matter."""
    if order in ("shuffle", "given", "length"):
        return None
    kind, _, name = order.partition(":")
    if kind == "column" and name:
        return lambda row: _number(row.get(name), name, "the column data.order names")
    if kind == "function" and name:
        function = _import(name)
        return lambda row: _number(_call(function, row, name), name, "what the function returns")
    raise ConfigError(
        f"data.order: unknown order {order!r}",
        rule="shuffle, given, length, column:NAME or function:package.module.name",
        fix="choose one of these",
    )


def _number(value: Any, name: str, what: str) -> float:
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if isinstance(value, str):  # csv has no numbers
        with suppress(ValueError):
            value, is_number = float(value), True
    if not is_number or math.isnan(value):
        raise RowProblem("no order key", f"{what} must be a number, is {value!r}", name)
    return float(value)


def _call(function: Callable[[dict[str, Any]], Any], row: dict[str, Any], name: str) -> Any:
    try:
        return function(row)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        message = f"the order function failed: {type(error).__name__}: {error}"
        raise RowProblem("no order key", message, name) from error


def _import(name: str) -> Callable[[dict[str, Any]], Any]:
    module_name, _, attribute = name.rpartition(".")
    rule = "function:package.module.name, called with the row (a dict), returns a number"
    try:
        function = vars(importlib.import_module(module_name))[attribute]
    except (ImportError, ValueError) as error:
        fix = "check the name; the folder of the module must be on PYTHONPATH"
        message = f"data.order: {module_name or name!r} cannot be imported: {error}"
        raise ConfigError(message, rule=rule, fix=fix) from error
    except KeyError:
        raise ConfigError(f"data.order: {module_name} has no {attribute!r}", rule=rule) from None
    if not callable(function):
        raise ConfigError(f"data.order: {name} is not a function", rule=rule)
    return function  # type: ignore[no-any-return]


def example_keys(order: str, chunk: EncodedChunk, first_row: int) -> NDArray[np.float64]:
    """Return the key of every example of a chunk, NaN for a shuffle. Shapes: (E,)."""
    if order == "given":
        return (chunk.rows + first_row).astype(np.float64)
    if order == "length":
        return chunk.lengths.astype(np.float64)
    return chunk.row_keys
