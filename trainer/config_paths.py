"""A config whose local paths hold from any folder: what resolved.json is written with.

Torch-free. A Hub id, a shipped name and a path to nothing stay as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from trainer.config_data import DataConfig, Source
from trainer.config_monitoring import SafetyConfig, SamplesConfig
from trainer.config_schema import Config, ModelConfig, TrainingConfig
from trainer.data.sources import ROLES

Watched = TypeVar("Watched", SamplesConfig, SafetyConfig)


def with_absolute_paths(config: Config) -> Config:
    """Return the config with its local paths made absolute; links are not followed."""
    return config.model_copy(
        update={
            "model": _model(config.model),
            "data": _data(config.data),
            "training": _training(config.training),
            "samples": _prompts(config.samples),
            "safety": _rules(_prompts(config.safety)),
        }
    )


def _model(model: ModelConfig) -> ModelConfig:
    is_path = model.name.startswith(("/", ".", "~")) or Path(model.name).is_dir()
    return model.model_copy(update={"name": _absolute(model.name)}) if is_path else model


def _data(data: DataConfig) -> DataConfig:
    template, cache = data.chat_template, data.cache_dir
    return data.model_copy(
        update={
            **{role: _sources(getattr(data, role)) for role in ROLES},
            "chat_template": template if template in (None, "chatml") else _if_file(template),
            "cache_dir": None if cache is None else _absolute(cache),
        }
    )


def _sources(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    return tuple(
        source.model_copy(update={"path": _absolute(source.path)})
        if Path(source.path).expanduser().exists()
        else source
        for source in sources
    )


def _training(training: TrainingConfig) -> TrainingConfig:
    path = training.deepspeed_config
    # Not expanded: DeepSpeed's file is looked up as it is written.
    if path is None or not Path(path).is_file():
        return training
    return training.model_copy(update={"deepspeed_config": str(Path(path).absolute())})


def _prompts(section: Watched) -> Watched:
    prompts = section.prompts
    if not isinstance(prompts, str):
        return section
    return section.model_copy(update={"prompts": _if_file(prompts)})


def _rules(safety: SafetyConfig) -> SafetyConfig:
    return safety.model_copy(update={"rules": _if_file(safety.rules)})


def _if_file(path: str | None) -> str | None:
    return _absolute(path) if path and Path(path).expanduser().is_file() else path


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
