"""What a diagnosis says: what was seen, why it matters, what to change. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Advice:
    """One diagnosis, with the run's own numbers in it."""

    name: str
    severity: Literal["info", "warning"]
    seen: str
    why: str
    change: str

    def text(self) -> str:
        """Two lines for a person."""
        return f"{self.name}: {self.seen}\n  {self.why}; {self.change}"
