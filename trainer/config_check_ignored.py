"""Settings about held-out data that a run without any would ignore. PURE."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config_checks import Contradiction
from trainer.config_defaults import has_validation
from trainer.config_schema import Config


def find_ignored(config: Config) -> Iterator[Contradiction]:
    """List the evaluation settings that have nothing to act on."""
    evaluation, data = config.evaluation, config.data
    if has_validation(data) or data.test or data.test_size:
        return
    for name in ("load_best", "at_start"):
        if not getattr(evaluation, name):
            yield Contradiction(
                (f"evaluation.{name}",),
                f"`evaluation.{name}` would be ignored: there is neither validation nor test "
                "data; give `data.validation_size` or `data.test_size`, or drop it",
            )
