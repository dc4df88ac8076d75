"""From a row's columns to what is learned: a conversation, or plain text. No tokens yet."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.config import ColumnNames, DataConfig, Source
from trainer.data.problems import RowProblem

Shape = Literal["instruction", "prompt_completion", "messages", "text"]
Message = dict[str, Any]
CHAT_SHAPES = ("instruction", "messages")
SHAREGPT = "conversations"
_ROLE_NAMES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
}
# Names other datasets use, for "did you mean" where spelling alone does not tell.
_SYNONYMS = {
    "instruction": ("question", "query", "prompt", "input"),
    "response": ("output", "answer", "completion", "target"),
    "prompt": ("question", "query", "instruction", "input"),
    "completion": ("response", "output", "answer", "target"),
    "text": ("content", "document", "body"),
    "messages": ("conversation", "conversations", "dialog", "chat", "turns"),
}


@dataclass(frozen=True)
class Layout:
    """How the rows of one file are read."""

    shape: Shape
    columns: ColumnNames
    prefix: str
    system_prompt: str | None


@dataclass(frozen=True, slots=True)
class Chat:
    messages: list[Message]


@dataclass(frozen=True, slots=True)
class Plain:
    """Text without a chat template. `label_start`: character from which it is learned."""

    text: str
    label_start: int


def choose_layout(found: Sequence[str], source: Source, data: DataConfig) -> Layout:
    """Settle the shape of a file by its columns. Raises ValueError with the fix when none fits."""
    columns = source.columns or data.columns
    wanted = source.shape or data.shape
    if wanted == "auto":
        shape = next((s for s in _needed(columns, found) if _fits(s, columns, found)), None)
        if shape is None:
            raise ValueError(_unrecognised(found, columns))
    else:
        shape = wanted
        if not _fits(shape, columns, found):
            needed = _needed(columns, found)[shape]
            absent = [name for name in needed if name not in found]
            hints = "".join(_did_you_mean(name, found, columns) for name in absent)
            raise ValueError(
                f"no column {' or '.join(map(repr, absent))}, which shape {shape} needs; "
                f"the columns are: {', '.join(found)}{hints}"
            )
    if shape == "messages" and columns.messages not in found:
        columns = columns.model_copy(update={"messages": SHAREGPT})
    return Layout(shape, columns, source.prefix, data.system_prompt)


def _needed(columns: ColumnNames, found: Sequence[str]) -> dict[Shape, tuple[str, ...]]:
    """Columns each shape cannot do without, in the order shapes are tried."""
    sharegpt = columns.messages not in found and SHAREGPT in found
    return {
        "messages": (SHAREGPT if sharegpt else columns.messages,),
        "instruction": (columns.instruction, columns.response),
        "prompt_completion": (columns.prompt, columns.completion),
        "text": (columns.text,),
    }


def _fits(shape: Shape, columns: ColumnNames, found: Sequence[str]) -> bool:
    return all(name in found for name in _needed(columns, found)[shape])


def _did_you_mean(absent: str, found: Sequence[str], columns: ColumnNames) -> str:
    fields = ("instruction", "response", "prompt", "completion", "text", "messages")
    name = next(field for field in fields if getattr(columns, field) == absent)
    near = difflib.get_close_matches(absent, found, n=1) or [
        column for column in found if column.lower() in _SYNONYMS[name]
    ]
    if not near:
        return f"; name it in data.columns.{name}"
    return f"; did you mean data.columns.{name}: {near[0]}?"


def _unrecognised(found: Sequence[str], columns: ColumnNames) -> str:
    needed = _needed(columns, found)
    partial: list[Shape] = [
        s for s, names in needed.items() if any(name in found for name in names)
    ]
    shapes = "; ".join(f"{shape}: {' + '.join(names)}" for shape, names in needed.items())
    hints = ""
    for shape in partial or list(needed):
        absent = [name for name in needed[shape] if name not in found]
        given = [_did_you_mean(name, found, columns) for name in absent]
        if given and all("did you mean" in hint for hint in given):
            hints = "".join(given)
            break
    else:
        hints = "; name your columns in data.columns"
    return f"no known row shape has the columns {', '.join(found)} (known: {shapes}){hints}"


def to_example(row: Mapping[str, Any], layout: Layout, *, needs_assistant: bool) -> Chat | Plain:
    """Validate one row. Raises RowProblem naming the field and the rule."""
    columns = layout.columns
    if layout.shape == "text":
        return Plain(layout.prefix + _answer(row, columns.text), 0)
    if layout.shape == "prompt_completion":
        prompt = layout.prefix + _string(row, columns.prompt)
        return Plain(prompt + _answer(row, columns.completion), len(prompt))
    if layout.shape == "instruction":
        asked, context = _string(row, columns.instruction), _optional(row, columns.input)
        if not asked.strip() and not context:
            raise RowProblem("empty field", "is empty; a question is needed", columns.instruction)
        content = f"{asked}\n\n{context}" if context else asked
        messages = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": _answer(row, columns.response)},
        ]
    else:
        messages = _messages(row, columns.messages, needs_assistant=needs_assistant)
    return Chat(_with_system_and_prefix(messages, _optional(row, columns.system), layout))


def _with_system_and_prefix(messages: list[Message], system: str, layout: Layout) -> list[Message]:
    if layout.prefix:
        first = next((m for m in messages if m["role"] == "user"), None)
        if first is None:
            message = f"no user turn to put the prefix {layout.prefix!r} before"
            raise RowProblem("no user turn", message, layout.columns.messages)
        first["content"] = layout.prefix + first["content"]
    system = system or layout.system_prompt or ""
    if system and all(m["role"] != "system" for m in messages):
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _type(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _string(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        columns = ", ".join(map(str, row)) or "none"
        raise RowProblem("missing field", f"missing; the row has: {columns}", name)
    value = row[name]
    if not isinstance(value, str):
        raise RowProblem("not a string", f"must be a string, is {_type(value)}", name)
    _check_unicode(value, name)
    return value


def _check_unicode(value: str, name: str) -> None:
    # JSON can spell half a surrogate pair ("\ud83d"), which no tokenizer can encode.
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"holds half a surrogate pair at character {error.start}; text must be Unicode"
        raise RowProblem("bad Unicode", message, name) from None


def _answer(row: Mapping[str, Any], name: str) -> str:
    value = _string(row, name)
    if not value.strip():
        raise RowProblem("empty answer", "is empty; there is nothing to learn from it", name)
    return value


def _optional(row: Mapping[str, Any], name: str) -> str:
    return "" if row.get(name) is None else _string(row, name)


def _messages(row: Mapping[str, Any], name: str, *, needs_assistant: bool) -> list[Message]:
    turns = row.get(name)
    if name not in row:
        columns = ", ".join(map(str, row)) or "none"
        raise RowProblem("missing field", f"missing; the row has: {columns}", name)
    if not isinstance(turns, list) or not turns:
        what = "an empty list" if turns == [] else _type(turns)
        raise RowProblem("not a conversation", f"must be a list of turns, is {what}", name)
    messages = [_message(turn, f"{name}[{index}]") for index, turn in enumerate(turns)]
    if needs_assistant and all(m["role"] != "assistant" for m in messages):
        message = "no assistant turn; there is nothing to learn (data.train_on: assistant)"
        raise RowProblem("no assistant turn", message, name)
    return messages


def _message(turn: Any, field: str) -> Message:
    """Return a turn as role/content. Other keys go to the template as they are."""
    if not isinstance(turn, dict):
        raise RowProblem("not a conversation", f"must be an object, is {_type(turn)}", field)
    role_key, content_key = (
        ("from", "value")
        if "role" not in turn and "from" in turn
        else (
            "role",
            "content",
        )
    )
    given = _string(turn, role_key) if role_key in turn else None
    role = _ROLE_NAMES.get(given or "")
    if role is None:
        known = (
            "human, gpt, system, tool" if role_key == "from" else "system, user, assistant, tool"
        )
        what = "has no role" if given is None else f"unknown role {given!r}"
        raise RowProblem("unknown role", f"{what}; known roles: {known}", f"{field}.{role_key}")
    content = _content(turn, content_key, f"{field}.{content_key}")
    has_calls = bool(turn.get("tool_calls"))
    if role == "assistant" and not content.strip() and not has_calls:
        message = "is empty; an assistant turn must say something"
        raise RowProblem("empty answer", message, f"{field}.{content_key}")
    used = (role_key, content_key)
    others = {key: value for key, value in turn.items() if key not in used and value is not None}
    return {"role": role, "content": content, **others}


def _content(turn: dict[str, Any], key: str, field: str) -> str:
    """Return a turn's text; a list of text parts is joined."""
    value = turn.get(key)
    if value is None and turn.get("tool_calls"):
        return ""
    if key not in turn:
        raise RowProblem("missing field", f"missing; the turn has: {', '.join(turn)}", field)
    if isinstance(value, list) and value and all(_is_text_part(part) for part in value):
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise RowProblem("not a string", f"must be a string, is {_type(value)}", field)
    _check_unicode(value, field)
    return value


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)
