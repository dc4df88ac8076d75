"""Callbacks whose memory goes into checkpoints."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class StatefulCallback(TrainerCallback):  # type: ignore[misc]
    """A callback that can tell, as JSON values, what it knows; one of each class in a run."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the next attempt must know."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what an earlier attempt knew."""
        raise NotImplementedError
