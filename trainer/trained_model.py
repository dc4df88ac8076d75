"""What a path given to merge or generate holds: a run, an adapter, or a whole model."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.adapter_identity import ADAPTER_CONFIG, adapter_digest
from trainer.errors import ConfigError, EnvironmentProblem
from trainer.model_source import looks_like_path
from trainer.run_directory import RunDirectory

_DEEPEST_IN_RUN = 2  # RUN/checkpoints/step-N


@dataclass(frozen=True)
class TrainedModel:
    """A whole model (folder or Hub id), and the adapter to put on it, if any."""

    label: str
    base: str
    adapter: Path | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    """Whether the model's own code may run; never asked on the terminal."""


def is_run(folder: Path) -> bool:
    """Tell a run directory from a model folder."""
    run = RunDirectory(folder)
    return run.resolved_config.is_file() or any(
        path.is_dir() for path in (run.adapter, run.merged, run.model)
    )


def find_trained_model(target: str, *, trust_remote_code: bool = False) -> TrainedModel:
    """Find what to load for TARGET: in a run `merged/`, else base + `adapter/`, else `model/`.

    The model's own code runs when asked for here, or when the run it was trained in trusted it.
    Raises: ConfigError when the folder is missing or holds no model.
    """
    found = _find(target)
    trusted = trust_remote_code or run_trusts_code(Path(target).expanduser())
    return replace(found, trust_remote_code=trusted)


def _find(target: str) -> TrainedModel:
    folder = Path(target).expanduser()
    if not folder.is_dir():
        if looks_like_path(target):
            raise ConfigError(
                f"there is no folder {target}",
                rule="a model is a run directory, a model or adapter folder, or a Hub id",
                fix="check the path",
            )
        return TrainedModel(target, target)
    if not is_run(folder):
        if (folder / ADAPTER_CONFIG).is_file():
            return _on_its_base(target, folder)
        return TrainedModel(target, str(folder))
    run = RunDirectory(folder)
    if (run.merged / "config.json").is_file() and _is_of_this_adapter(run):
        return TrainedModel(target, str(run.merged))
    if (run.adapter / ADAPTER_CONFIG).is_file():
        return _on_its_base(target, run.adapter)
    if (run.model / "config.json").is_file():
        return TrainedModel(target, str(run.model))
    raise ConfigError(
        f"the run {target} holds no trained model yet",
        rule="a finished run has adapter/, merged/ or model/",
        fix=f"train it to its end, or give a checkpoint: {run.checkpoints}/step-N",
    )


def _is_of_this_adapter(run: RunDirectory) -> bool:
    """Whether merged/ has not been overtaken by an adapter that was trained, and not merged."""
    try:
        merged = json.loads((run.merged / "merge.json").read_text("utf-8"))["identity"]["adapters"]
        description = read_adapter_config(run.adapter)
    except (OSError, ValueError, KeyError, TypeError):
        return True  # nothing is known of it
    return bool(merged == adapter_digest(run.adapter, description))


def find_adapter(target: str) -> tuple[Path, Path]:
    """Find the adapter to merge, and where the merged model goes by default.

    Raises: ConfigError when there is no adapter, or nothing to merge.
    """
    folder = Path(target).expanduser()
    if (folder / ADAPTER_CONFIG).is_file():
        return folder, _place_beside(folder)
    run = RunDirectory(folder)
    if (run.adapter / ADAPTER_CONFIG).is_file():
        return run.adapter, run.merged
    if (run.model / "config.json").is_file() or (folder / "config.json").is_file():
        whole = run.model if run.model.is_dir() else folder
        raise ConfigError(
            f"there is nothing to merge in {target}",
            rule="only LoRA adapters are merged; full fine-tuning leaves a whole model",
            fix=f"use {whole} as it is",
        )
    is_folder = folder.is_dir()
    raise ConfigError(
        f"{target} {'holds no adapter' if is_folder else 'is not a folder'}",
        rule="merge takes a run directory with adapter/, or a PEFT adapter folder",
        fix=f"give the run directory, or a checkpoint: {run.checkpoints}/step-N"
        if is_folder
        else "check the path (relative paths start at the working directory)",
    )


def _place_beside(adapter: Path) -> Path:
    """Return where the merge of an adapter folder goes; merged/ of a run is that of its result."""
    run = find_run(adapter)
    if run is None or adapter.resolve() == run.adapter.resolve():
        return RunDirectory(adapter.parent).merged
    return run.path / f"merged-{adapter.resolve().name}"


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """Read PEFT's description of an adapter.

    Raises: ConfigError when it is not a JSON object; EnvironmentProblem when it cannot be read.
    """
    path = adapter / ADAPTER_CONFIG
    try:
        values = json.loads(path.read_text("utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is no object")
    except OSError as error:
        raise EnvironmentProblem(
            f"{path} cannot be read: {error.strerror}",
            rule="an adapter folder is one this user may read",
            fix="change its permissions",
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{path} is not JSON: {error}",
            rule="an adapter folder is as save_pretrained wrote it",
            fix="copy it again from where it was trained",
        ) from error
    return values


def read_run_system_prompt(target: str) -> str | None:
    """Read the system prompt a run was trained with, if TARGET is a run that had one."""
    data = _read_resolved(Path(target).expanduser()).get("data") or {}
    prompt: str | None = data.get("system_prompt")
    return prompt


def run_trusts_code(folder: Path) -> bool:
    """Tell whether the run that `folder` is, or lies in, was told to run the model's own code."""
    model = settings_of_run(folder).get("model") or {}
    return model.get("trust_remote_code") is True


def settings_of_run(folder: Path) -> dict[str, Any]:
    """Read the resolved config of the run that `folder` is, or lies in; empty when there is none.

    Values are as they were written, without a check.
    """
    run = find_run(folder) if folder.is_dir() else None  # else a Hub id
    return {} if run is None else _read_resolved(run.path)


def find_run(folder: Path) -> RunDirectory | None:
    """Return the run that `folder` is, or lies in, as it is named or where its links lead."""
    for named in (folder.absolute(), folder.resolve()):
        for place in (named, *named.parents[:_DEEPEST_IN_RUN]):
            if RunDirectory(place).resolved_config.is_file():
                return RunDirectory(place)
    return None


def _read_resolved(run: Path) -> dict[str, Any]:
    resolved = RunDirectory(run).resolved_config
    if not resolved.is_file():
        return {}
    values: dict[str, Any] = json.loads(resolved.read_text("utf-8"))
    return values


def _on_its_base(label: str, adapter: Path) -> TrainedModel:
    values = read_adapter_config(adapter)
    base = values.get("base_model_name_or_path")
    if not base:
        raise ConfigError(
            f"the adapter {adapter} does not say which base model it belongs to",
            rule="adapter_config.json names it in base_model_name_or_path",
            fix="add it there, or merge the adapter with --base",
        )
    return TrainedModel(label, str(base), adapter, values.get("revision"))
