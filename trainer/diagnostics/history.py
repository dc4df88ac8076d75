"""What a run has measured so far, as series over its steps. PURE."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Series = list[tuple[int, float]]  # step, value

_NAMES = {
    "loss": "losses",
    "eval_loss": "validation",
    "grad_norm": "gradients",
    "learning_rate": "rates",
    "mfu": "mfu",
    "eval_safety_compliance_rate": "compliance",
}


@dataclass
class History:
    """Finite numbers only; a later number of the same step replaces the earlier one."""

    losses: Series = field(default_factory=list)
    """Training loss: the mean since the line before."""
    validation: Series = field(default_factory=list)
    gradients: Series = field(default_factory=list)
    """Norms before clipping."""
    rates: Series = field(default_factory=list)
    mfu: Series = field(default_factory=list)
    compliance: Series = field(default_factory=list)

    def add(self, line: Mapping[str, Any]) -> None:
        """Take the numbers of one line of metrics.jsonl."""
        for name, attribute in _NAMES.items():
            value = line.get(name)
            if isinstance(value, (int, float)) and math.isfinite(value):
                series: Series = getattr(self, attribute)
                if series and series[-1][0] == line["step"]:
                    series.pop()
                series.append((line["step"], float(value)))

    @property
    def step(self) -> int:
        """The newest step anything is known of."""
        return max(
            (series[-1][0] for series in (self.losses, self.validation) if series), default=0
        )


def mean_of(series: Iterable[tuple[int, float]]) -> float:
    """Return the mean of the values; NaN of none."""
    values = [value for _, value in series]
    return sum(values) / len(values) if values else math.nan
