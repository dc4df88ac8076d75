"""Numbers and settings as short text. PURE."""

from __future__ import annotations

import json
import math
from typing import Any

_MINUTE, _HOUR = 60, 3600
_SMALLEST_PLAIN = 1e-3
"""Smaller numbers, such as learning rates, are read more easily with an exponent."""


def short(value: float) -> str:
    """Return four digits at most, with k, M or G for large numbers."""
    if not math.isfinite(value):
        return "not finite"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    if 0 < abs(value) < _SMALLEST_PLAIN:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


def loss(value: float | None) -> str:
    """Return a loss with four decimals, as the terminal does."""
    return "not measured" if value is None else f"{value:.4f}"


def rate(value: float) -> str:
    """Return something a second: whole from a hundred on."""
    return f"{value:,.0f}" if value >= 100 else short(value)


def gib(value: float) -> str:
    """Return an amount of memory that is in GiB."""
    return f"{value:.2f} GiB"


def duration(seconds: float) -> str:
    """Return hours and minutes, minutes and seconds, or seconds."""
    whole = round(seconds)
    if whole >= _HOUR:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02d} min"
    if whole >= _MINUTE:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02d} s"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.2g} s"


def count(value: Any) -> str:
    """Return a whole number with separators; anything else as a setting."""
    return (
        f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else setting(value)
    )


def setting(value: Any) -> str:
    """Return one value of a config as a person writes it; empty for none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 and math.isfinite(value) else short(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def cut(text: str, limit: int) -> str:
    """Return a text, its end replaced by how much is missing when it is longer than `limit`."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit:,} more characters)"
