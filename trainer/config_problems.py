"""What a config problem is, where it was written, and what it is called in plain words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KeyPath = tuple[str | int, ...]
SET_OPTION = ("--set",)
"""Written path of a value that came from the command line."""


@dataclass(frozen=True)
class Problem:
    """One mistake; `line` is None where no line can be named."""

    text: str
    line: int | None = None
    from_set: bool = False

    def render(self, file: str) -> str:
        """Write the problem with its place in front."""
        if self.from_set:
            return f"--set: {self.text}"
        return f"{file}:{self.line}: {self.text}" if self.line else f"{file}: {self.text}"


@dataclass(frozen=True)
class Places:
    """Canonical setting -> where it was written."""

    lines: Mapping[KeyPath, int]
    written: Mapping[str, KeyPath]
    """Canonical dotted name -> keys as the user wrote them."""

    def problem(self, path: KeyPath, text: str) -> Problem:
        """Attach a message to the place of a canonical path, or of the closest thing above it."""
        as_written = self.as_written(path)
        if as_written[:1] == SET_OPTION:
            return Problem(text, from_set=True)
        return Problem(text, line=line_of(self.lines, as_written))

    def as_written(self, path: KeyPath) -> KeyPath:
        """Return the keys the user wrote for a canonical path."""
        for length in range(len(path), 0, -1):
            start = self.written.get(dotted(path[:length]))
            if start is not None:
                return (*start, *path[length:])
        return path

    def name(self, path: KeyPath) -> str:
        """Name a setting canonically, with the user's own spelling when it differs."""
        canonical, own = dotted(path), dotted(self.as_written(path))
        if own == canonical or own.startswith(SET_OPTION[0]):
            return f"`{canonical}`"
        return f"`{own}` ({canonical})"


def dotted(path: Iterable[str | int]) -> str:
    """Join keys as they are shown to a reader."""
    return ".".join(map(str, path))


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    """Return the line of a written path, or of the closest thing above it that has one."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


def did_you_mean(name: str, known: Mapping[str, str], *, inside: str = "") -> str:
    """Word a suggestion for a misspelt name, or nothing.

    `known` maps what may be written to what is suggested then. A name of the section it was
    written `inside` comes first.
    """
    own = {
        path[len(inside) + 1 :]: path
        for path in known.values()
        if inside and path.startswith(f"{inside}.")
    }
    for names in (own, known):
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
        if close:
            return f"; did you mean `{names[close[0]]}`?"
    return ""


def existing_part(values: Any, path: KeyPath) -> KeyPath:
    """Cut a path where the values end: validation adds the names of types it tried."""
    for depth, key in enumerate(path):
        if isinstance(values, list):
            values = dict(enumerate(values))
        if not isinstance(values, dict) or key not in values:
            return path[:depth]
        values = values[key]
    return path


# pydantic error type -> what was expected, in words. Several for one value are joined by "or".
_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a section of `key: value` lines",
    "model_attributes_type": "a section of `key: value` lines",
}


def to_problem(path: KeyPath, errors: Sequence[Mapping[str, Any]], places: Places) -> Problem:
    """Word pydantic's errors about one setting as one problem."""
    name = places.name(path)
    first = errors[0]
    expected = list(dict.fromkeys(_expected(error) for error in errors))
    if "a number" in expected:
        expected = [kind for kind in expected if kind != "a whole number"]
    if first["type"] == "missing":
        return places.problem(path[:-1] or path, f"{name} is required")
    text = f"{name} must be {' or '.join(expected)}, not {_shown(first['input'])}"
    if first["type"] == "literal_error":
        choices = _choices(first)
        text += did_you_mean(str(first["input"]), {choice: choice for choice in choices})
    return places.problem(path, text)


def _expected(error: Mapping[str, Any]) -> str:
    limits: Mapping[str, Any] = error.get("ctx", {})
    match error["type"]:
        case "greater_than":
            return f"greater than {limits['gt']:g}"
        case "greater_than_equal":
            return f"{limits['ge']:g} or more"
        case "less_than":
            return f"less than {limits['lt']:.10g}"
        case "literal_error":
            return "one of " + ", ".join(_choices(error))
        case "string_too_short" | "too_short":
            return "given"
    return _EXPECTED.get(error["type"], str(error["msg"]))


def _choices(error: Mapping[str, Any]) -> list[str]:
    return [part.strip("'") for part in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text '{value}'" if value else "empty"
    if isinstance(value, dict):
        return "a section"
    return "an empty list" if value == [] else repr(value)
