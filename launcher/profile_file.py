"""Profiles as files: the shipped ones, and a user's own, checked whole.

In a profile `gpu` and `host` are an entry of the hardware table (profiles/hardware.yaml), a list of
GPUs (the smallest of them counts), or a section that states the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from launcher.profile import Gpu, Host, Profile, Reserve, contradictions, smallest_of
from launcher.quantity import STATED_BY
from trainer.config_file import load_config_file
from trainer.config_problems import (
    Places,
    Problem,
    did_you_mean,
    existing_part,
    to_problem,
)
from trainer.config_types import Section
from trainer.errors import ConfigError

try:
    from yaml import CSafeLoader as _FastLoader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader as _FastLoader  # type: ignore[assignment]

_FOLDER = Path(__file__).resolve().parent / "profiles"
_TABLE = "hardware"
_RULE = "a profile says what one kind of machine is: device, gpus_per_node, gpu, host ..."
_FIX = "start from a shipped one: rankzero profiles --json"


class HardwareTable(Section):
    """Every hardware number that is shipped, by name."""

    gpus: dict[str, Gpu]
    hosts: dict[str, Host]
    reserve: Reserve


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a shipped profile by name, or any by its file.

    Raises: ConfigError naming file, line, key and value of every problem.
    """
    given = str(name_or_path)
    if given in profile_names():
        return _load_file(_FOLDER / f"{given}.yaml", is_shipped=True)
    path = Path(given)
    if path.suffix.lower() in (".yaml", ".yml", ".json") or "/" in given:
        return _load_file(path, is_shipped=False)
    names = profile_names()
    meant = did_you_mean(given, {name: name for name in names})
    raise ConfigError(
        f"there is no profile `{given}`{meant}",
        rule=f"a profile is auto, one of {', '.join(names)}, or a .yaml or .json file",
        fix="rankzero profiles lists them",
    )


@cache
def profile_names() -> tuple[str, ...]:
    """Return the shipped names, single machines before clusters."""
    names = [path.stem for path in _FOLDER.glob("*.yaml") if path.stem != _TABLE]
    kinds = ("cpu", "single-", "multi-node-", "multi-")
    order = {"cpu": 0, "single-": 1, "multi-": 2, "multi-node-": 3}
    kind = {name: next((k for k in kinds if name.startswith(k)), "") for name in names}
    return tuple(sorted(names, key=lambda name: (order.get(kind[name], 4), name)))


def shipped_profiles() -> list[Profile]:
    """Read every shipped profile."""
    return [load_profile(name) for name in profile_names()]


@cache
def hardware_table() -> HardwareTable:
    """Read the table of hardware numbers; each must state its source."""
    text = (_FOLDER / f"{_TABLE}.yaml").read_text(encoding="utf-8")
    # Our own file needs no line numbers: libyaml reads it in a sixth of the time.
    return HardwareTable.model_validate(yaml.load(text, Loader=_FastLoader))


def _load_file(path: Path, *, is_shipped: bool) -> Profile:
    try:
        file = load_config_file(path)
    except ConfigError as error:
        raise ConfigError(error.what, rule=_RULE, fix=_FIX) from None
    places = Places(file.lines, {})
    values = dict(file.values)
    values.setdefault("name", path.stem)
    problems = [*file.problems, *_fill_in(values, places)]
    if problems:
        raise _refusal(path, problems)
    # Whoever writes a profile vouches for its numbers; shipped ones name their sources.
    context = {} if is_shipped else {STATED_BY: f"stated in {path.name}"}
    try:
        profile = Profile.model_validate(values, context=context)
    except ValidationError as error:
        raise _refusal(path, _to_problems(error, values, places)) from None
    against = [places.problem((key,), text) for key, text in contradictions(profile)]
    if against:
        raise _refusal(path, against)
    return profile


def _fill_in(values: dict[str, Any], places: Places) -> list[Problem]:
    """Replace names of the table by what they stand for; return unknown names."""
    table = hardware_table()
    problems: list[Problem] = []

    def named(key: str, name: Any, known: Mapping[str, Any], *at: int) -> Any:
        if isinstance(name, str) and name in known:
            return known[name]
        meant = did_you_mean(str(name), {entry: entry for entry in known})
        what = f"`{key}` names `{name}`, which the hardware table does not have"
        text = f"{what}{meant}" if meant else f"{what}; it has {', '.join(known)}"
        problems.append(places.problem((key, *at), text))
        return None

    gpu = values.get("gpu")
    if isinstance(gpu, str):
        values["gpu"] = named("gpu", gpu, table.gpus)
    elif isinstance(gpu, list) and gpu:
        found = [named("gpu", name, table.gpus, index) for index, name in enumerate(gpu)]
        values["gpu"] = None if problems else smallest_of(found)
    if isinstance(values.get("host"), str):
        values["host"] = named("host", values["host"], table.hosts)
    values.setdefault("reserve", table.reserve)
    return problems


def _to_problems(error: ValidationError, values: dict[str, Any], places: Places) -> list[Problem]:
    by_path: dict[tuple[str | int, ...], list[Any]] = {}
    for found in error.errors(include_url=False):
        if found["type"] == "extra_forbidden":
            path = found["loc"]
        elif found["type"] == "missing":
            path = (*existing_part(values, found["loc"]), found["loc"][-1])
        else:
            path = existing_part(values, found["loc"])
        by_path.setdefault(path, []).append(found)
    return [_to_problem(path, errors, places) for path, errors in by_path.items()]


def _to_problem(path: tuple[str | int, ...], errors: list[Any], places: Places) -> Problem:
    if errors[0]["type"] != "extra_forbidden":
        return to_problem(path, errors, places)
    section: Any = Profile
    for key in path[:-1]:
        section = {"gpu": Gpu, "host": Host, "reserve": Reserve}.get(str(key), section)
    meant = did_you_mean(str(path[-1]), {name: name for name in section.model_fields})
    return places.problem(path, f"unknown key {places.name(path)}{meant}")


def _refusal(path: Path, problems: list[Problem]) -> ConfigError:
    ordered = sorted(problems, key=lambda problem: problem.line or 0)
    lines = "\n".join(f"  {problem.render(str(path))}" for problem in ordered)
    noun = "problem" if len(problems) == 1 else "problems"
    return ConfigError(
        f"profile {path.stem}: {len(problems)} {noun}\n{lines}", rule=_RULE, fix=_FIX
    )
