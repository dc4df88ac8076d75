"""A config file as plain values, with the line every key was written on.

YAML is read as 1.1, which its users expect, without the readings nobody means: `1e-5` is a
number, `010` and `1:30` are not, and a date stays text. A `.json` file is read as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainer.config_problems import KeyPath, Problem
from trainer.errors import ConfigError

# A config this deep or large is a mistake (or YAML aliases multiplying themselves).
MAX_VALUES = 20_000
# Strings, marks and bare words of JSON text that is known to be valid.
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')


@dataclass(frozen=True)
class ConfigFile:
    """Values as written, and where each was written."""

    path: Path
    values: dict[str, Any]
    lines: dict[KeyPath, int]
    problems: list[Problem] = field(default_factory=list)


def load_config_file(path: Path) -> ConfigFile:
    """Read a YAML or JSON config.

    Raises: ConfigError when there is no readable mapping in it.
    """
    text = _load_text(path)
    if not text.strip():
        raise ConfigError(f"{path}: the file is empty", rule=_A_MAPPING, fix=_START)
    reader = _JsonText(path, text) if path.suffix.lower() == ".json" else _YamlText(path, text)
    try:
        values = reader.read()
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply", rule=_A_MAPPING, fix=_START) from None
    if values is None:
        raise ConfigError(f"{path}: only comments, no setting", rule=_A_MAPPING, fix=_START)
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else "a single value"
        raise ConfigError(f"{path}: the file holds {kind}", rule=_A_MAPPING, fix=_START)
    return ConfigFile(path, values, reader.lines, reader.problems)


def parse_value(text: str) -> Any:
    """Read one value as YAML, as `--set` takes it.

    Raises: ValueError when it is no YAML.
    """
    reader = _YamlText(Path("--set"), text)
    try:
        return reader.read()
    except ConfigError as error:
        raise ValueError(error.what) from None


_A_MAPPING = "a config is a mapping of settings: `key: value` lines, or a JSON object"
_START = "`rankzero init` writes a config to start from"


def _load_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file", rule="a run starts from a config file", fix=_START
        ) from None
    except IsADirectoryError:
        raise ConfigError(
            f"{path}: this is a folder",
            rule="a run starts from a config file",
            fix="name the file in it, such as resolved.json of a run directory",
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}:{line}: byte {error.object[error.start]:#04x} is not valid UTF-8",
            rule="a config is UTF-8 text",
            fix="save the file as UTF-8",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror})",
            rule="a run starts from a config file",
            fix="check the path and its permissions",
        ) from None


class _Text:
    """State shared by the two syntaxes while reading."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []

    def note_key(self, parent: KeyPath, key: str, line: int, known: set[str]) -> None:
        where = (*parent, key)
        if key in known:
            self.problems.append(
                Problem(
                    f"`{'.'.join(map(str, where))}` is written twice in the same place, "
                    f"first on line {self.lines[where]}; keep one",
                    line=line,
                )
            )
        known.add(key)
        self.note_line(where, line)

    def note_line(self, where: KeyPath, line: int) -> None:
        if len(self.lines) >= MAX_VALUES:
            raise ConfigError(
                f"{self.path}: more than {MAX_VALUES} values",
                rule="a config holds settings, not data",
                fix="move rows into a file and name it under `data.train`",
            )
        self.lines.setdefault(where, line)


class _YamlText(_Text):
    def read(self) -> Any:
        try:
            loader = _Loader(self.text)
            node = loader.get_single_node()
            return None if node is None else self._value(loader, node, (), ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self._not_yaml(str(error.problem), mark.line + 1 if mark else 1) from None
        except yaml.reader.ReaderError as error:
            # The reader names a position in what it had buffered; the text itself is exact.
            bad = chr(error.character) if isinstance(error.character, int) else ""
            line = self.text[: max(self.text.find(bad), 0)].count("\n") + 1
            raise self._not_yaml(f"unprintable character {bad!r}", line) from None

    def _not_yaml(self, problem: str, line: int) -> ConfigError:
        fix = "check the indentation, the space after each colon and the quotes around this line"
        if r"'\t'" in problem:
            fix = "indent with spaces: YAML does not accept tabs"
        return ConfigError(
            f"{self.path}:{line}: not readable as YAML: {problem}",
            rule="a config is one YAML document, or JSON in a .json file",
            fix=fix,
        )

    def _value(
        self, loader: _Loader, node: yaml.Node, where: KeyPath, inside: tuple[yaml.Node, ...]
    ) -> Any:
        if node in inside:
            raise self._not_yaml("an alias that contains itself", node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(loader, node, where, (*inside, node))
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self.note_line((*where, index), item.start_mark.line + 1)
                items.append(self._value(loader, item, (*where, index), (*inside, node)))
            return items
        return loader.construct_object(node)

    def _mapping(
        self,
        loader: _Loader,
        node: yaml.MappingNode,
        where: KeyPath,
        inside: tuple[yaml.Node, ...],
    ) -> dict[str, Any]:
        known: set[str] = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._not_yaml("a key that is not text", line)
            if key_node.tag != "tag:yaml.org,2002:merge":
                self.note_key(where, key_node.value, line, known)
        # After the note: a key of a merged mapping (`<<: *base`) may be written again on purpose.
        loader.flatten_mapping(node)
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = (*where, key_node.value)
            self.note_line(key, key_node.start_mark.line + 1)
            values[key_node.value] = self._value(loader, value_node, key, inside)
        return values


class _JsonText(_Text):
    def read(self) -> Any:
        try:
            values = json.loads(self.text)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{self.path}:{error.lineno}: not readable as JSON: {error.msg} "
                f"(column {error.colno})",
                rule="a .json config is strict JSON: double quotes, no comments, no trailing comma",
                fix="correct this line, or name the file .yaml to write it more freely",
            ) from None
        self._read_lines(self._tokens(), ())
        return values

    def _tokens(self) -> Iterator[tuple[str, int]]:
        line, position = 1, 0
        for match in _JSON_TOKEN.finditer(self.text):
            line += self.text.count("\n", position, match.start())
            position = match.start()
            yield match.group(), line

    def _read_lines(self, tokens: Iterator[tuple[str, int]], where: KeyPath) -> bool:
        """Note the lines of one value; false when a closing mark came instead."""
        token, line = next(tokens)
        if token in ("]", "}"):
            return False
        if where and isinstance(where[-1], int):
            self.note_line(where, line)
        if token == "[":
            index = 0
            while self._read_lines(tokens, (*where, index)) and next(tokens)[0] == ",":
                index += 1
        elif token == "{":
            known: set[str] = set()
            token, line = next(tokens)
            while token != "}":
                key = json.loads(token)
                self.note_key(where, key, line, known)
                next(tokens)  # the colon
                self._read_lines(tokens, (*where, key))
                token, line = next(tokens)
                if token == ",":
                    token, line = next(tokens)
        return True


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars described on top of this file."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the shape the base class defines
        first: [
            (tag, pattern)
            for tag, pattern in rules
            if tag.rsplit(":", 1)[1] not in ("int", "float", "timestamp")
        ]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def make_int(self, node: yaml.ScalarNode) -> int:
        return int(node.value)

    def make_float(self, node: yaml.ScalarNode) -> float:
        return float(
            node.value.replace(".inf", "inf").replace(".Inf", "inf").replace(".nan", "nan")
        )


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*)\Z"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf))|\.nan)\Z"
    ),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.make_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.make_float)
