"""How often the cluster is asked, and how long something may be wrong."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from trainer.errors import ConfigError

VARIABLE = "RANKZERO_POLL_SECONDS"
_POLL_SECONDS = 2.0
_PATIENCE_POLLS = 150


@dataclass(frozen=True)
class Pace:
    """Seconds between two looks, and how many looks something may be wrong for."""

    poll_seconds: float = _POLL_SECONDS
    patience: int = _PATIENCE_POLLS
    """Five minutes: of a lost connection, an image that does not come, a Job that stays."""

    def looks(self, most: int | None = None) -> Iterator[int]:
        """Count from 0, with a pause before each but the first."""
        for number in itertools.count() if most is None else range(most):
            if number:
                time.sleep(self.poll_seconds)
            yield number


def read_pace() -> Pace:
    """Read the pace from the environment.

    Raises: ConfigError.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        return Pace()
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise ConfigError(
            f"{VARIABLE}={given}", rule="seconds between two requests", fix=f"unset {VARIABLE}"
        )
    return Pace(seconds)
