"""The run config: what is learned. Torch-free, shared with the launcher.

`load_config` is the one way in: file, other spellings, overrides, validation, derived defaults,
contradictions; every problem found is reported at once. `python -m trainer.config FILE` prints the
result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.config_check_ignored import find_ignored
from trainer.config_check_monitoring import find_unwatched
from trainer.config_checks import find_contradictions
from trainer.config_data import ColumnNames, DataConfig, RowShape, Source
from trainer.config_defaults import fill_derived
from trainer.config_dialects import Normalised, known_names, normalise
from trainer.config_file import load_config_file
from trainer.config_overrides import apply_overrides
from trainer.config_problems import (
    KeyPath,
    Places,
    Problem,
    did_you_mean,
    dotted,
    existing_part,
    to_problem,
)
from trainer.config_schema import (
    Attention,
    CheckpointConfig,
    Config,
    EvaluationConfig,
    LoraConfig,
    MergeConfig,
    ModelConfig,
    Optimizer,
    Precision,
    Quantization,
    Schedule,
    Tracker,
    TrackingConfig,
    TrainingConfig,
    setting_paths,
)
from trainer.config_types import Section
from trainer.errors import ConfigError, RankZeroError

__all__ = [
    "Attention",
    "CheckpointConfig",
    "ColumnNames",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "LoraConfig",
    "MergeConfig",
    "ModelConfig",
    "Optimizer",
    "Precision",
    "Quantization",
    "RowShape",
    "Schedule",
    "Section",
    "Source",
    "Tracker",
    "TrackingConfig",
    "TrainingConfig",
    "json_schema",
    "load_config",
    "to_json",
]

_FIX = "correct what is named above; `rankzero init` writes a config that explains its settings"
# Stand in for required settings that are missing, so that the rest can still be checked.
_REQUIRED: dict[str, dict[str, Any]] = {
    "model": {"name": "missing"},
    "data": {"train": ["missing"]},
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and return it validated, with every default filled in.

    `overrides` are `key=value` in canonical names; they win over the file.

    Raises: ConfigError naming every problem at once.
    """
    file = load_config_file(Path(path))
    given = normalise(file.values, file.lines)
    problems = [*file.problems, *given.problems, *apply_overrides(given, overrides)]
    places = Places(file.lines, given.written)
    config, mistakes, broken = _validate(given, places)
    problems += mistakes
    if config is not None:
        config = fill_derived(config)
        problems += [
            places.problem(_written_first(found.paths, given), found.text)
            for found in (
                *find_contradictions(config),
                *find_ignored(config),
                *find_unwatched(config),
            )
            if not broken.intersection(found.paths)
        ]
    if problems or config is None:
        problems.sort(key=lambda problem: (problem.from_set, problem.line or 0))
        texts = dict.fromkeys(problem.render(str(path)) for problem in problems)
        raise ConfigError.from_problems(str(path), list(texts), fix=_FIX)
    return config


def to_json(config: Config) -> str:
    """Write a config as the JSON text that `load_config` reads back to an equal one."""
    return json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def json_schema() -> dict[str, Any]:
    """Describe the config for editors, in canonical names."""
    schema = Config.model_json_schema()
    # Derived from the model's name when left out.
    schema["required"] = [name for name in schema["required"] if name != "output_dir"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "RankZero config",
    }


def _validate(
    given: Normalised, places: Places
) -> tuple[Config | None, list[Problem], frozenset[str]]:
    """Validate; with mistakes, return what the config is without the broken settings."""
    # A section left out altogether is missing its required setting, which is what to say.
    values = {**{section: {} for section in _REQUIRED}, **given.values}
    try:
        return Config.model_validate(values), [], frozenset()
    except ValidationError as error:
        found = _by_setting(error, values)
    problems = []
    for path, errors in found.items():
        if errors[0]["type"] == "extra_forbidden":
            meant = _suggestion(path)
            written = dotted(places.as_written(path))
            problems.append(places.problem(path, f"unknown key `{written}`{meant}"))
        else:
            problems.append(to_problem(path, errors, places))
    rest = deepcopy(values)
    for path in found:
        _remove(rest, path)
    for section, standin in _REQUIRED.items():
        rest[section] = {**standin, **rest.get(section, {})}
    try:
        return Config.model_validate(rest), problems, frozenset(map(dotted, found))
    except ValidationError:
        return None, problems, frozenset()


def _by_setting(
    error: ValidationError, values: Mapping[str, Any]
) -> dict[KeyPath, list[Mapping[str, Any]]]:
    """Group errors by the setting they are about: a union of types gives one error per type."""
    found: dict[KeyPath, list[Mapping[str, Any]]] = {}
    for item in error.errors():
        if item["loc"] == ("output_dir",) and item["type"] == "missing":
            continue  # named after the model, so only missing because that is
        path = item["loc"] if item["type"] == "missing" else existing_part(values, item["loc"])
        found.setdefault(path, []).append(dict(item))
    # A list with a mistake in it also counts as empty to pydantic; the mistake is enough.
    return {
        path: errors
        for path, errors in found.items()
        if not any(path == other[: len(path)] for other in found if other != path)
    }


def _suggestion(path: KeyPath) -> str:
    """Suggest a name for an unknown key; inside a list of sources, one that a source has."""
    name, inside = str(path[-1]), path[:-1]
    if any(isinstance(key, int) for key in inside):
        fields = setting_paths(ColumnNames if inside[-1] == "columns" else Source)
        return did_you_mean(name, {field: field for field in fields})
    return did_you_mean(name, known_names(), inside=dotted(inside))


def _remove(values: Any, path: KeyPath) -> None:
    """Delete a setting; one inside a list takes the whole list with it."""
    for depth, key in enumerate(path[:-1]):
        if isinstance(path[depth + 1], int) or not isinstance(values.get(key), dict):
            values.pop(key, None)
            return
        values = values[key]
    values.pop(path[-1], None)


def _written_first(paths: Sequence[str], given: Normalised) -> KeyPath:
    """Choose the setting to blame: the first one that was written rather than derived."""
    chosen = next((path for path in paths if path in given.written), paths[0])
    return tuple(chosen.split("."))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a config as it is understood; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.config", description=main.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    try:
        sys.stdout.write(to_json(load_config(options.file, options.set)))
    except RankZeroError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
