"""Settings about held-out data that a run without any would ignore, or could never meet. PURE."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config_checks import Contradiction
from trainer.config_defaults import has_validation
from trainer.config_schema import Config


def find_ignored(config: Config) -> Iterator[Contradiction]:
    """List the settings that have nothing to act on."""
    evaluation, data = config.evaluation, config.data
    has = {"validation": has_validation(data), "test": bool(data.test or data.test_size)}
    for figure, split in (("eval_loss", "validation"), ("test_loss", "test")):
        if figure in config.merge.require and not has[split]:
            yield Contradiction(
                (f"merge.require.{figure}",),
                f"`merge.require.{figure}` could never be met: there is no {split} data to "
                f"measure it on; give `data.{split}` or `data.{split}_size`, or drop it",
            )
    if any(has.values()):
        return
    for name in ("load_best", "at_start"):
        if not getattr(evaluation, name):
            yield Contradiction(
                (f"evaluation.{name}",),
                f"`evaluation.{name}` would be ignored: there is neither validation nor test "
                "data; give `data.validation_size` or `data.test_size`, or drop it",
            )
