"""What a run needs beside config and data: told before anything is worked on. Torch-free.

Only what can be seen in an instant; each is checked whole where it is used. A checker of the user's
own is not imported: it may load what it likes, and the launcher may not find it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from trainer.checkpoints.resume import check_named
from trainer.config import Config, TrackingConfig
from trainer.errors import EnvironmentProblem
from trainer.safety.checker import BUILT_IN, check_name
from trainer.safety.prompts import load_prompts
from trainer.safety.rules import load_rules
from trainer.weight_paths import weight_paths


def check_run(config: Config, resume: str) -> None:
    """Look for base weights, prompts, rules, trackers and the checkpoint that `resume` names.

    Raises: ConfigError, EnvironmentProblem.
    """
    check_named(resume)
    folder = Path(config.model.name).expanduser()
    if (folder / "config.json").is_file():  # else a Hub id, or what planning and preparing refuse
        weight_paths(folder, config.model.name, "model.name")
    load_prompts(config.samples.prompts)
    if config.safety.enabled:
        load_prompts(config.safety.prompts)
        check_name(config.safety.checker)
        if config.safety.checker == BUILT_IN:
            load_rules(Path(config.safety.rules) if config.safety.rules else None)
    check_trackers(config.tracking)


def check_trackers(config: TrackingConfig) -> None:
    """Raises: EnvironmentProblem when a tracker is not installed."""
    missing = [name for name in config.to if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            f"tracking.to: {', '.join(missing)} is not installed",
            rule="every tracker named in tracking.to must be importable",
            fix=f"pip install {' '.join(missing)}, or take it out of tracking.to",
        )
