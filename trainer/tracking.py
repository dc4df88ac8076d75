"""The trackers a run is shown in: the same names in each, and the same run when it goes on.

They are opened on rank 0 alone, and imported only there. A tracker reads the variables that
`tracker_environment` sets, which is how a user sends a run elsewhere (MLFLOW_TRACKING_URI,
WANDB_MODE=offline, TRACKIO_SPACE_ID).
"""

from __future__ import annotations

import json
import os
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import rewrite_logs

from trainer.config import Config, TrackingConfig
from trainer.report.page import PICTURE
from trainer.run_directory import RunDirectory, read_lines, write_json
from trainer.trackers import TRACKERS, RunToTrack, Tracker


def tracker_environment(config: TrackingConfig, directory: RunDirectory) -> None:
    """Set the variables that trackers read; a user's own value stays."""
    variables = {
        "TENSORBOARD_LOGGING_DIR": str(directory.tensorboard),
        "WANDB_PROJECT": config.project,
        "WANDB_NAME": config.run_name or directory.path.name,
        "WANDB_DIR": str(directory.path),
        "MLFLOW_EXPERIMENT_NAME": config.project,
        # Files under the run directory unless a server is named.
        "MLFLOW_TRACKING_URI": f"sqlite:///{directory.path.resolve()}/mlflow.db",
        "TRACKIO_DIR": str(directory.path / "trackio"),
        # Nothing goes to the makers of a tracker; MLflow's own is off in trainer/entry.py.
        "WANDB_ERROR_REPORTING": "false",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    for name, value in variables.items():
        os.environ.setdefault(name, value)


class TrackersCallback(TrainerCallback):  # type: ignore[misc]
    """Shows each logged line in every tracker of a run. Ranks: rank 0 only."""

    def __init__(self, config: Config, directory: RunDirectory, first_step: int) -> None:
        """Open the trackers; raises EnvironmentProblem when one refuses."""
        tracker_environment(config.tracking, directory)
        self.samples, self.curves = directory.samples, directory.path / PICTURE
        identities = directory.path / "trackers.json"
        known = json.loads(identities.read_text("utf-8")) if identities.exists() else {}
        self.trackers: list[Tracker] = []
        for name in config.tracking.to:
            run = RunToTrack(config, directory, first_step, known.get(name))
            tracker = TRACKERS[name](run)
            self.trackers.append(tracker)
            if tracker.identity not in (None, run.identity):
                known[name] = tracker.identity
                write_json(identities, known)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        metrics: dict[str, float] = rewrite_logs(logs)
        for tracker in self.trackers:
            tracker.log(metrics, state.global_step)
        if "eval/quality" in metrics:  # logged when the line of its answers is written
            samples = read_lines(self.samples)[-1]["samples"]
            for tracker in self.trackers:
                tracker.show_samples(samples, state.global_step)

    def finish(self) -> None:
        """End the run in all trackers, with the picture of its curves if there is one.

        A process that ends without this leaves runs that count as cut short, to go on with.
        """
        for tracker in self.trackers:
            tracker.finish(self.curves)
