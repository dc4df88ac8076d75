"""Write reference/config.md and reference/command-line.md from the code they describe.

The tests compare, so that neither drifts. Run it in a checkout: python docs/write_reference.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from launcher.cli import COMMANDS, rankzero
from trainer.config import json_schema
from trainer.config_dialects import RENAMED, SECTION_SPELLINGS
from trainer.config_groups import GROUPS
from trainer.config_values import TRANSLATED
from trainer.errors import INTERRUPTED_BY_KEYBOARD, RankZeroError

FOLDER = Path(__file__).resolve().parent / "reference"
_GENERATED = "<!-- Written by docs/write_reference.py (`make reference`); do not edit. -->"
_Schema = Mapping[str, Any]

_CONFIG_HEAD = """\
# Every setting of the config

{generated}

A config is YAML or JSON. `model.name` and `data.train` are required. A setting left out, or null,
has its default; where none is shown there is none, or the last column tells it. `--set KEY=VALUE`
changes a setting for one run, by the names below.

An unknown key is an error, as is a setting that the run would ignore. All mistakes are shown at
once, with file and line. `rankzero schema` prints a JSON Schema for editors, and
`python -m trainer.config run.yaml` a config as it is understood, every default filled in.
"""
_SPELLINGS_HEAD = """\
## Other spellings

The Hugging Face arguments and their relatives mean the settings below, flat or inside any section.
Of those with a star the value is translated too, or counts together with others.

| setting | also |
|---|---|"""
_SPELLINGS_TAIL = """
Sections may also be called {sections}.

In a flat file a setting needs no section where only one section has its name, unless that is as
general as `name` or `train`.
"""
_COMMANDS_HEAD = """\
# Every command

{generated}

What a program may read goes to stdout, all else to stderr. Every command takes `--help`.

| command | |
|---|---|"""
_COMMANDS_TAIL = """
## Without the launcher

| | |
|---|---|
| `python -m trainer.config FILE` | print the config as it is understood; takes `--set` |
| `python -m trainer.prepare --config FILE` | prepare the data alone |
| `python -m trainer --config FILE` | train: `FILE` is a config, or a run's `resolved.json` |

## Exit codes

| code | |
|---|---|
| 0 | Done. |
| 1 | A bug, or an error nobody foresaw. |"""


def config_page() -> str:
    """Describe every setting: its name, what it takes, its default and its meaning."""
    schema = json_schema()
    sections = list(_sections(schema, schema["$defs"]))
    parts = [_CONFIG_HEAD.format(generated=_GENERATED), *sections, _spellings()]
    return "\n".join(parts)


def command_line_page() -> str:
    """Describe every command, its options, and the exit codes."""
    context = click.Context(rankzero, info_name="rankzero")
    commands = [(name, rankzero.get_command(context, name)) for name in COMMANDS]
    listed = (f"| [`rankzero {name}`](#rankzero-{name}) | {COMMANDS[name]} |" for name in COMMANDS)
    lines = [_COMMANDS_HEAD.format(generated=_GENERATED), *listed]
    for name, command in commands:
        assert command is not None
        lines += ["", *_command(name, command, context)]
    return "\n".join([*lines, _COMMANDS_TAIL, *_exit_codes(), ""])


PAGES: dict[str, Callable[[], str]] = {
    "config.md": config_page,
    "command-line.md": command_line_page,
}
"""File below reference/ -> what it must hold."""


def main() -> None:
    """Write every page."""
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


# ---- settings ----


def _sections(schema: _Schema, defined: Mapping[str, _Schema]) -> Iterator[str]:
    """Give each section its table; settings that have no section come last."""
    alone: dict[str, _Schema] = {}
    for name, setting in schema["properties"].items():
        if "$ref" not in setting:
            alone[name] = setting
            continue
        yield from _section(name, _named(setting, defined), defined)
    yield _table("On the top level", "", alone, {*schema["required"]})


def _section(name: str, section: _Schema, defined: Mapping[str, _Schema]) -> Iterator[str]:
    nested = {key: each for key, each in section["properties"].items() if "$ref" in each}
    own = {key: each for key, each in section["properties"].items() if key not in nested}
    about = f"{section['description']}\n\n"
    yield _table(f"`{name}`", f"{name}.", own, {*section.get("required", ())}, about)
    for key, each in nested.items():
        yield from _section(f"{name}.{key}", _named(each, defined), defined)
    if name == "data":
        source = defined["Source"]
        about = "Of each item, where `data.train`, `data.validation` or `data.test` is a list.\n\n"
        yield _table("A source", "", source["properties"], {*source["required"]}, about)


def _table(
    title: str, prefix: str, settings: Mapping[str, _Schema], required: set[str], about: str = ""
) -> str:
    lines = ["| setting | takes | default | |", "|---|---|---|---|"]
    for name, setting in settings.items():
        default = "required" if name in required else _default(setting)
        cells = (f"`{prefix}{name}`", _takes(setting), default, _line(setting["description"]))
        lines.append(f"| {' | '.join(cells)} |")
    return f"## {title}\n\n{about}" + "\n".join(lines) + "\n"


def _named(setting: _Schema, defined: Mapping[str, _Schema]) -> _Schema:
    return defined[setting["$ref"].rpartition("/")[2]]


def _default(setting: _Schema) -> str:
    value = setting.get("default")
    if value in (None, "", []):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _takes(setting: _Schema) -> str:
    """Say in words what a JSON Schema accepts."""
    if "anyOf" in setting:
        kinds = [_takes(kind) for kind in setting["anyOf"] if kind.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in setting:
        return "[source](#a-source)" if setting["$ref"].endswith("/Source") else "mapping"
    if "enum" in setting or "const" in setting:
        return ", ".join(f"`{value}`" for value in setting.get("enum", [setting.get("const")]))
    return f"{_kind(setting)} {_bounds(setting)}".strip()


def _kind(setting: _Schema) -> str:
    if setting["type"] == "array":
        return f"list of {_takes(setting['items'])}"
    if setting["type"] == "object":
        return f"mapping to {_takes(setting['additionalProperties'])}"
    kind: str = setting["type"]
    return {"string": "text", "boolean": "true or false"}.get(kind, kind)


def _bounds(setting: _Schema) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    return ", ".join(f"{sign} {setting[key]}" for key, sign in signs.items() if key in setting)


def _spellings() -> str:
    marked = {spelling: rule.target for spelling, rule in TRANSLATED.items()}
    marked |= {spelling: target for group in GROUPS for spelling, target in group.targets.items()}
    found: dict[str, list[str]] = {}
    for spelling, target in {**RENAMED, **marked}.items():
        star = r"\*" if spelling in marked else ""
        found.setdefault(target, []).append(f"`{spelling}`{star}")
    rows = (f"| `{target}` | {', '.join(names)} |" for target, names in sorted(found.items()))
    sections = (f"`{other}` ({name})" for other, name in SECTION_SPELLINGS.items())
    tail = _SPELLINGS_TAIL.format(sections=", ".join(sections))
    return "\n".join([_SPELLINGS_HEAD, *rows, tail])


# ---- commands ----


def _command(name: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"## `rankzero {name}`"
    yield f"\n```\n{usage}\n```\n"
    yield "\n\n".join(_line(text) for text in (command.help or "").split("\n\n"))
    rows = [_option(each, context) for each in command.params if isinstance(each, click.Option)]
    if rows:
        yield "\n| option | |\n|---|---|"
        yield from rows


def _option(option: click.Option, context: click.Context) -> str:
    """Write an option as its help shows it: name and value, meaning, default and range."""
    record = option.get_help_record(context)
    assert record is not None
    names, meaning = record
    return f"| `{names.replace('|', chr(92) + '|')}` | {_line(meaning)} |"


def _exit_codes() -> Iterator[str]:
    for error in RankZeroError.__subclasses__():
        assert error.__doc__ is not None
        yield f"| {error.exit_code} | {_line(error.__doc__)} |"
    yield f"| {INTERRUPTED_BY_KEYBOARD} | Ctrl-C where there was nothing to save. |"


def _line(text: str) -> str:
    """Make a table cell of a docstring."""
    return " ".join(text.split()).replace("|", r"\|")


if __name__ == "__main__":
    main()
