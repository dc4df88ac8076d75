"""Rendering conversations with a chat template, and which characters of the result are learned.

The labelled characters are found without `{% generation %}` marks: the conversation is rendered
again with sentinels in place of the contents, which shows what the template writes around them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from trainer.data.problems import RowProblem
from trainer.data.rows import Message
from trainer.errors import DataError

Span = tuple[int, int]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_OPEN, _CLOSE = "\uf8f0", "\uf8f1"  # private-use characters: no template tests for them
_MAX_SKELETONS = 1000
# Whatever a template's own code may raise while it runs on a row it was not written for.
_RENDER_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


def _sentinel(index: int) -> str:
    return f"{_OPEN}{index}{_CLOSE}"


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template, and what trial conversations taught about it. Pickles."""

    template: str
    special_tokens: dict[str, Any]
    """Names the template may use: bos_token, eos_token, ..."""
    folds_system: bool = False
    """The template refuses a system turn, so its text goes into the first user turn."""
    turn_marker: str = ""
    """What ends an assistant turn that another turn follows, such as <|im_end|>."""
    final_marker: str = ""
    """What ends the last assistant turn."""
    appended_eos: str = ""
    """End-of-text token added after the last turn, because the template writes no end."""
    _skeletons: dict[tuple[str, ...], tuple[str, ...] | None] = field(
        default_factory=dict, compare=False, repr=False
    )

    def render(self, messages: list[Message], *, generation_prompt: bool = False) -> str:
        """Render as `apply_chat_template(tokenize=False)` does. Raises RowProblem."""
        try:
            # annotated as a string there; returns the texts and, unused here, generation marks
            rendered: tuple[list[str], Any] = render_jinja_template(
                [messages],
                chat_template=self.template,
                add_generation_prompt=generation_prompt,
                **self.special_tokens,
            )
        except _RENDER_ERRORS as error:
            reason = "refused by the chat template"
            raise RowProblem(reason, f"{reason}: {error}", "messages") from None
        return rendered[0][0]

    def fold(self, messages: list[Message]) -> list[Message]:
        """Put a leading system turn's text into the first user turn, if the template needs it."""
        if not self.folds_system or messages[0]["role"] != "system":
            return messages
        system, rest = messages[0]["content"], messages[1:]
        for index, message in enumerate(rest):
            if message["role"] == "user":
                told = {**message, "content": f"{system}\n\n{message['content']}"}
                return [*rest[:index], told, *rest[index + 1 :]]
        reason = "refused by the chat template"
        rule = "this template has no system turn, and there is no user turn to put its text into"
        raise RowProblem(reason, f"{reason}: {rule}", "messages")

    def render_labelled(self, messages: list[Message]) -> tuple[str, list[Span]]:
        """Render, and find the characters the assistant must write, end-of-turn marks included."""
        messages = self.fold(messages)
        text = self.render(messages)
        spans = self._spans_by_skeleton(messages, text)
        if spans is None:
            spans = self._spans_turn_by_turn(messages, text)
        if self.appended_eos and messages[-1]["role"] == "assistant":
            spans.append((len(text), len(text) + len(self.appended_eos)))
            text += self.appended_eos
        return text, spans

    def _spans_by_skeleton(self, messages: list[Message], text: str) -> list[Span] | None:
        """The fast way: splice the contents into what the template wrote for these roles before.

        It counts only when the splice equals the real rendering, so a template that treats this
        content in some other way cannot get a wrong mask.
        """
        if any(len(message) > 2 for message in messages):
            return None  # tool calls and the like change what surrounds the contents
        roles = tuple(message["role"] for message in messages)
        if roles not in self._skeletons:
            if len(self._skeletons) >= _MAX_SKELETONS:
                self._skeletons.clear()
            self._skeletons[roles] = self._make_skeleton(roles)
        pieces = self._skeletons[roles]
        if pieces is None:
            return None
        as_is = [message["content"] for message in messages]
        for contents in (as_is, [content.strip() for content in as_is]):
            parts = [pieces[0]]
            for content, piece in zip(contents, pieces[1:], strict=True):
                parts += [content, piece]
            if "".join(parts) == text:
                return self._spans_of_parts(roles, parts, text)
        return None

    def _spans_of_parts(self, roles: tuple[str, ...], parts: list[str], text: str) -> list[Span]:
        spans, position = [], len(parts[0])
        for index, role in enumerate(roles):
            end = position + len(parts[2 * index + 1])
            if role == "assistant":
                spans.append((position, self._end_of_turn(text, end, index == len(roles) - 1)))
            position = end + len(parts[2 * index + 2])
        return spans

    def _make_skeleton(self, roles: tuple[str, ...]) -> tuple[str, ...] | None:
        """Return what the template writes before, between and after the contents."""
        trial = [{"role": role, "content": _sentinel(i)} for i, role in enumerate(roles)]
        try:
            rest = self.render(trial)
        except RowProblem:
            return None
        pieces = []
        for index in range(len(roles)):
            before, found, rest = rest.partition(_sentinel(index))
            if not found or _OPEN in before:
                return None
            pieces.append(before)
        return None if _OPEN in rest else (*pieces, rest)

    def _spans_turn_by_turn(self, messages: list[Message], text: str) -> list[Span]:
        """The general way, for templates that rewrite contents (old reasoning dropped, ...)."""
        spans, previous = [], 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            span = self._span_of_turn(messages, index, text)
            if span is None or not previous <= span[0] <= span[1]:
                reason = "assistant text not found"
                rule = "the chat template rewrites this turn so that its text cannot be located"
                raise RowProblem(reason, f"{reason}: {rule}", f"messages[{index}]")
            spans.append(span)
            previous = span[1]
        return spans

    def _span_of_turn(self, messages: list[Message], index: int, text: str) -> Span | None:
        """Locate one turn: by a sentinel in its place, else by rendering what comes before it."""
        is_last = index == len(messages) - 1
        written = {"tool_calls", "reasoning_content"} & messages[index].keys()
        if not written:
            sentinel = _sentinel(0)
            while sentinel in text:
                sentinel = _OPEN + sentinel
            trial = {**messages[index], "content": sentinel}
            probe = self.render([*messages[:index], trial, *messages[index + 1 :]])
            before, found, after = probe.partition(sentinel)
            if found and text.startswith(before) and text.endswith(after):
                return len(before), self._end_of_turn(text, len(text) - len(after), is_last)
            if found and text.endswith(after):
                start = self._start_by_prefix(messages, index, text)
                end = self._end_of_turn(text, len(text) - len(after), is_last)
                return None if start is None else (start, end)
        start = self._start_by_prefix(messages, index, text)
        turn = text if is_last else self.render(messages[: index + 1])
        if start is None or not text.startswith(turn.rstrip()):
            return None
        return start, max(start, len(turn.rstrip()))

    def _start_by_prefix(self, messages: list[Message], index: int, text: str) -> int | None:
        if index == 0:
            return None
        before = self.render(messages[:index], generation_prompt=True)
        return len(before) if text.startswith(before) else None

    def _end_of_turn(self, text: str, end: int, is_last: bool) -> int:
        """Move the end of a content past the end-of-turn marker that follows it."""
        for marker in (self.final_marker if is_last else "", self.turn_marker):
            if marker and text.startswith(marker, end):
                return end + len(marker)
        return end


def learn_template(
    template: str, special_tokens: dict[str, Any], eos_token: str | None, tokenizer: Tokenizer
) -> ChatTemplate:
    """Try the template on small conversations: system turns, and how an assistant turn ends."""
    blank = ChatTemplate(template, special_tokens)
    roles = ("user", "assistant", "user", "assistant")
    pieces = blank._make_skeleton(roles)
    if pieces is None:
        blank_trial = [{"role": role, "content": "text"} for role in roles]
        try:
            blank.render(blank_trial)
            why = "it does not write every turn once, in order"
        except RowProblem as problem:
            why = problem.message
        raise DataError(
            f"the chat template cannot render user and assistant turns: {why}",
            rule="a chat template writes the content of every turn once, in order",
            fix="set data.chat_template to chatml, or to a Jinja file that does",
        )
    final_marker = pieces[-1].rstrip()
    turn_marker = _common_tokens(tokenizer, pieces[2], pieces[-1]).rstrip()
    return replace(
        blank,
        folds_system=_refuses_system(blank),
        turn_marker=turn_marker,
        final_marker=final_marker,
        appended_eos="" if final_marker else (eos_token or ""),
    )


def _refuses_system(template: ChatTemplate) -> bool:
    """Tell whether a system turn raises, or vanishes without a word."""
    trial = [
        {"role": role, "content": _sentinel(index)}
        for index, role in enumerate(("system", "user", "assistant"))
    ]
    try:
        return _sentinel(0) not in template.render(trial)
    except RowProblem:
        return True


def _common_tokens(tokenizer: Tokenizer, first: str, second: str) -> str:
    """Return the longest common beginning made of whole tokens.

    By characters alone "<|end|><|user|>" and "<|end|><|endoftext|>" would share "<|end|><|".
    """
    end = 0
    encoded = (tokenizer.encode(text, add_special_tokens=False) for text in (first, second))
    one, other = encoded
    for a, b, span in zip(one.ids, other.ids, one.offsets, strict=False):
        if a != b or first[: span[1]] != second[: span[1]]:
            break
        end = span[1]
    return first[:end]
