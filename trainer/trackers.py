"""Each tracker a run may be shown in, behind one protocol: TensorBoard, W&B, MLflow, trackio.

A tracker's library is imported when it is opened, on rank 0 alone.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainer.config import Config
from trainer.errors import EnvironmentProblem
from trainer.run_directory import RunDirectory

_MLFLOW_BATCH = 100  # params of one request; source: mlflow/utils/validation.py


class Tracker(Protocol):
    """One run in one tracker. Steps never go down."""

    identity: str | None
    """What finds the run again; None when its files do."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Show numbers; those of a step the tracker has already are left out, where it can tell."""
        ...

    def show_samples(self, samples: list[dict[str, Any]], step: int) -> None:
        """Show answers of the model, if the tracker has a place for them."""
        ...

    def finish(self, curves: Path) -> None:
        """Show the picture of a run's curves, if the tracker has a place for it, and close."""
        ...


@dataclass(frozen=True)
class RunToTrack:
    """What trackers are told of a run."""

    config: Config
    directory: RunDirectory
    first_step: int
    """The run goes on after this one."""
    identity: str | None = None
    """Of the run in this tracker, when there is one to go on with."""

    @property
    def name(self) -> str:
        return self.config.tracking.run_name or self.directory.path.name

    @property
    def settings(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json")


class TensorBoard:
    """Event files; what an attempt repeats is purged."""

    identity: str | None = None

    def __init__(self, run: RunToTrack) -> None:
        from torch.utils.tensorboard import SummaryWriter

        threading.excepthook = _tell_but_tensorboard
        # What an earlier attempt logged after this one's first step is shown no more.
        self.writer = SummaryWriter(
            log_dir=Path(os.environ["TENSORBOARD_LOGGING_DIR"]).expanduser(),
            purge_step=run.first_step + 1,
        )
        if run.first_step == 0:
            self.writer.add_text("config", _as_code(json.dumps(run.settings, indent=2)))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def show_samples(self, samples: list[dict[str, Any]], step: int) -> None:
        for number, sample in enumerate(samples, 1):
            parts = (sample["prompt"], sample["greedy"], sample["sampled"])
            titles = ("prompt", "greedy", f"drawn (quality of the greedy one {sample['quality']})")
            text = "\n\n".join(
                f"{title}:\n\n{_as_code(part)}" for title, part in zip(titles, parts, strict=True)
            )
            self.writer.add_text(f"samples/{number}", text, step)
        self.writer.flush()

    def finish(self, curves: Path) -> None:
        self.writer.close()


def _as_code(text: str) -> str:
    """Let Markdown show a text as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _tell_but_tensorboard(failure: threading.ExceptHookArgs) -> None:
    """Leave a failed write to the next call of the tracker, which raises it where it is explained.

    Source: tensorboard/summary/writer/event_file_writer.py (_check_worker_status).
    """
    if type(failure.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(failure)


class Wandb:
    """One W&B run; online it is given steps once."""

    def __init__(self, run: RunToTrack) -> None:
        self.wandb = wandb = importlib.import_module("wandb")
        own = os.environ.get("WANDB_RUN_ID")
        self.identity: str | None = run.identity or own or uuid.uuid4().hex[:12]
        try:
            self.run = wandb.init(id=self.identity, resume="allow")
        except wandb.errors.Error as error:
            fix = "wandb login, WANDB_MODE=offline, or take it out of tracking.to"
            raise _cannot_open("wandb", error, fix) from error
        self.run.config.update(run.settings, allow_val_change=True)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        # W&B takes no step twice; asked to, it would warn at each.
        if step >= self.run.starting_step:
            self.run.log(dict(metrics), step=step)

    def show_samples(self, samples: list[dict[str, Any]], step: int) -> None:
        columns = ["prompt", "greedy", "sampled", "quality"]
        rows = [[sample[name] for name in columns] for sample in samples]
        if step >= self.run.starting_step:
            self.run.log({"samples": self.wandb.Table(columns=columns, data=rows)}, step=step)

    def finish(self, curves: Path) -> None:
        if curves.exists():
            self.run.log({"training_curves": self.wandb.Image(str(curves))})
        self.run.finish()


class Mlflow:
    """One MLflow run; one that is cut short counts as killed."""

    def __init__(self, run: RunToTrack) -> None:
        self.mlflow = mlflow = importlib.import_module("mlflow")
        name = None if run.identity or "MLFLOW_RUN_ID" in os.environ else run.name
        self.last_steps: dict[str, int] = {}
        try:
            started = mlflow.start_run(run_id=run.identity, run_name=name)
            self.identity: str | None = started.info.run_id
            if run.identity:
                self.last_steps = self._last_steps()
        except mlflow.exceptions.MlflowException as error:
            fix = "look at MLFLOW_TRACKING_URI, or take it out of tracking.to"
            raise _cannot_open("mlflow", error, fix) from error
        # Before MLflow's own, which calls a run that was cut short finished.
        atexit.register(mlflow.end_run, "KILLED")
        if run.identity is None:
            self._log_params(run.settings)

    def _last_steps(self) -> dict[str, int]:
        client = self.mlflow.MlflowClient()
        names = client.get_run(self.identity).data.metrics
        histories = {name: client.get_metric_history(self.identity, name) for name in names}
        return {name: max(point.step for point in points) for name, points in histories.items()}

    def _log_params(self, settings: dict[str, Any]) -> None:
        params = list(flat(settings))
        for first in range(0, len(params), _MLFLOW_BATCH):
            self.mlflow.log_params(dict(params[first : first + _MLFLOW_BATCH]))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        new = later_than(self.last_steps, metrics, step)
        if new:
            # In the background: a server that is slow, or gone, does not hold up the training.
            self.mlflow.log_metrics(new, step=step, synchronous=False)

    def show_samples(self, samples: list[dict[str, Any]], step: int) -> None:
        pass

    def finish(self, curves: Path) -> None:
        self.mlflow.flush_async_logging()
        self.mlflow.end_run()


class Trackio:
    """One trackio run, found by its name."""

    def __init__(self, run: RunToTrack) -> None:
        self.trackio = importlib.import_module("trackio")
        self.identity: str | None = run.identity or run.name
        project = run.config.tracking.project
        with contextlib.redirect_stdout(sys.stderr):
            self.trackio.init(
                project,
                name=self.identity,
                resume="allow" if run.identity else "never",
                config=run.settings,
            )
        self.last_steps: dict[str, int] = {}
        if run.identity:
            storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
            for line in storage.get_logs(project, self.identity):
                self.last_steps.update(dict.fromkeys(line, line["step"]))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        new = later_than(self.last_steps, metrics, step)
        if new:
            self.trackio.log(new, step=step)

    def show_samples(self, samples: list[dict[str, Any]], step: int) -> None:
        pass

    def finish(self, curves: Path) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.trackio.finish()


TRACKERS: dict[str, Callable[[RunToTrack], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}


def _cannot_open(name: str, error: Exception, fix: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"tracking.to: {name} cannot be opened: {error}",
        rule="every tracker named in tracking.to must take the run",
        fix=fix,
    )


def later_than(
    last_steps: Mapping[str, int], metrics: Mapping[str, float], step: int
) -> dict[str, float]:
    """Leave out what an earlier attempt has logged of this step."""
    return {name: value for name, value in metrics.items() if step > last_steps.get(name, -1)}


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """List settings by their dotted names."""
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
