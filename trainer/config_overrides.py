"""`--set key=value`: settings from the command line, which win over the file's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.config_defaults import put_aside
from trainer.config_dialects import Normalised, known_names
from trainer.config_file import parse_value
from trainer.config_problems import SET_OPTION, Problem, did_you_mean
from trainer.config_schema import setting_paths


def apply_overrides(given: Normalised, overrides: Sequence[str]) -> list[Problem]:
    """Put the overrides into a normalised config and return what is wrong with them.

    An alternative the file chose (`epochs`, when `max_steps` is set here) steps aside; null puts
    a setting back to its default.
    """
    chosen: dict[str, Any] = {}
    problems: list[Problem] = []
    for override in overrides:
        try:
            name, value = _parse(override)
        except ValueError as error:
            problems.append(Problem(str(error), from_set=True))
        else:
            chosen[name] = value
    given_names = [name for name, value in chosen.items() if value is not None]
    for name in put_aside(given_names):
        _drop(given, name)
    for name, value in chosen.items():
        _drop(given, name)
        if value is not None:
            _put(given, name, value)
    return problems


def _parse(override: str) -> tuple[str, Any]:
    name, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"`{override}` has no value; write `{override}=VALUE`")
    if name not in setting_paths():
        section, _, leaf = name.rpartition(".")
        meant = did_you_mean(leaf, known_names(), inside=section)
        raise ValueError(f"unknown setting `{name}`{meant}")
    try:
        return name, parse_value(text)
    except ValueError as error:
        raise ValueError(f"the value of `{override}` cannot be read: {error}") from None


def _drop(given: Normalised, name: str) -> None:
    *sections, leaf = name.split(".")
    values: Any = given.values
    for section in sections:
        values = values.get(section, {})
        if not isinstance(values, dict):
            return
    values.pop(leaf, None)
    given.written.pop(name, None)


def _put(given: Normalised, name: str, value: Any) -> None:
    *sections, leaf = name.split(".")
    values: Any = given.values
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[leaf] = value
    given.written[name] = (*SET_OPTION, *name.split("."))
