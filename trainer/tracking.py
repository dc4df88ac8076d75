"""Trackers get the run's name, project and folder through the variables they read."""

from __future__ import annotations

import importlib.util
import os
import threading

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from trainer.config import TrackingConfig
from trainer.errors import EnvironmentProblem
from trainer.run_directory import RunDirectory

_MODULES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
}


def restart_tensorboard(callbacks: list[TrainerCallback], first_step: int) -> None:
    """Let TensorBoard forget the steps after `first_step`, which this attempt repeats.

    Ranks: rank 0 only, after `tracker_environment`.
    """
    threading.excepthook = _tell_but_tensorboard
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            from torch.utils.tensorboard import SummaryWriter  # only there when it is asked for

            callback.tb_writer = SummaryWriter(
                log_dir=callback.logging_dir, purge_step=first_step + 1
            )


def _tell_but_tensorboard(failure: threading.ExceptHookArgs) -> None:
    """Leave a failed write to the next call of the tracker, which raises it where it is explained.

    Source: tensorboard/summary/writer/event_file_writer.py (_check_worker_status).
    """
    if type(failure.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(failure)


def tracker_environment(config: TrackingConfig, directory: RunDirectory) -> None:
    """Set the variables that transformers' tracker integrations read; a user's own value stays.

    Raises: EnvironmentProblem when a tracker is not installed.
    """
    missing = [name for name in config.to if importlib.util.find_spec(_MODULES[name]) is None]
    if missing:
        raise EnvironmentProblem(
            f"tracking.to: {', '.join(missing)} is not installed",
            rule="every tracker named in tracking.to must be importable",
            fix=f"pip install {' '.join(missing)}, or take it out of tracking.to",
        )
    variables = {
        "TENSORBOARD_LOGGING_DIR": str(directory.tensorboard),
        "WANDB_PROJECT": config.project,
        "WANDB_DIR": str(directory.path),
        "MLFLOW_EXPERIMENT_NAME": config.project,
        # Files under the run directory unless a server is named.
        "MLFLOW_TRACKING_URI": f"sqlite:///{directory.path.resolve()}/mlflow.db",
        "TRACKIO_DIR": str(directory.path / "trackio"),
    }
    for name, value in variables.items():
        os.environ.setdefault(name, value)
