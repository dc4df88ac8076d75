"""An answer as plain sentences: what the patterns of the rules are matched against.

Markdown, line breaks, curly quotes and invisible characters are gone; words and case stay.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

_PLAIN = str.maketrans(
    dict.fromkeys("\u2018\u2019\u02bc`", "'")  # curly and grave, both typed as apostrophes
    | dict.fromkeys("\u201c\u201d", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
)
_CODE = re.compile(r"(?<!\w)`+|`+(?!\w)")
_LINK = re.compile(r"!?\[([^\]\n]*)\]\([^)\s]*\)")
_TAG = re.compile(r"</?[a-zA-Z][^<>\n]*>")
_EMPHASIS = re.compile(r"\*+|~~|(?<!\w)_+|_+(?!\w)")
_ITEM = re.compile(r"\s*(?:[-*+•‣]|\d{1,2}[.)]|[a-zA-Z]\))\s+")
_HEADING = re.compile(r"\s*#{1,6}\s+")
_QUOTE = re.compile(r"\s*(?:>\s?)+")
# A full stop after a title or an abbreviation ends nothing.
_END = re.compile(
    r"(?<!\bdr\.)(?<!\bmr\.)(?<!\bmrs\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<=[.!?;])[\"')]*\s+", re.I
)


@dataclass
class _Block:
    """A paragraph, a heading or an item of a list."""

    text: str
    is_item: bool = False
    is_open: bool = True
    """The next line may go on with it."""


def to_sentences(text: str) -> tuple[str, ...]:
    """Split into sentences; each item of a list begins with the words in front of it (`Take:`)."""
    sentences: list[str] = []
    lead, is_in_list = "", False
    for block in _blocks(_to_plain(text)):
        if is_in_list and not block.is_item:
            lead = ""
        parts = [part for part in _END.split(block.text) if part]
        sentences += [f"{lead} {part}" if lead else part for part in parts]
        if block.text.endswith(":"):
            lead, is_in_list = parts[-1], False
        elif block.is_item:
            is_in_list = True
        else:
            lead = ""
    return tuple(sentences)


def has_words(text: str) -> bool:
    """Say whether there is a single letter, in any script."""
    return any(character.isalpha() for character in text)


def _to_plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", _CODE.sub("", text).translate(_PLAIN))
    visible = (c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cf", "Cc"))
    return _TAG.sub(" ", _LINK.sub(r"\1", "".join(visible)))


def _blocks(text: str) -> Iterator[_Block]:
    block = _Block("", is_open=False)
    for line in map(_without_quote_marks, text.split("\n")):
        item, heading = _ITEM.match(line), _HEADING.match(line)
        start = item or heading
        words = _words(line[start.end() :] if start else line)
        if words and not start and block.is_open:
            block.text += f" {words}"
            continue
        if block.text:
            yield block
        block = _Block(words, is_item=item is not None, is_open=bool(words) and heading is None)
    if block.text:
        yield block


def _without_quote_marks(line: str) -> str:
    return _QUOTE.sub("", line)


def _words(line: str) -> str:
    return " ".join(_EMPHASIS.sub("", line).replace("|", " ").split())
