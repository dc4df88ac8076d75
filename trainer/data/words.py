"""Cutting text into words at places that no token crosses, so that a word's tokens can be kept.

A byte-level tokenizer cuts a text at its added tokens, the rest into pre-tokens by a regular
expression, and tokenises every pre-token by itself. None of the expressions in _ALTERNATIVES
matches, one behind the other,
  - a character that is not white space, and a space;
  - an ASCII letter or digit, and an ASCII character that is neither, apart from the apostrophe;
and none looks back, or ahead except from white space. So a cut at such a place is a cut of the
tokenizer's own, and what lies on one side of it changes nothing on the other. NFC does not reach
across it either: nothing composes with an ASCII character that follows, and no character turns
into white space. The words are then tokenised by the tokenizer itself, with all that it does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE

Cut = Callable[[str], list[str]]
"""Cuts a text into words, which join to the text again."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_MIXED_CASE = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)
_SPACES = r"\s+"
# Source: the expressions, taken apart at their bars, in tokenizer.json of GPT-2, Llama 3, Qwen 2.5
# and 3.5, Mistral Nemo, Phi-4-mini and GPT-OSS.
_ALTERNATIVES = {
    _CONTRACTIONS,
    *(r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"),
    *(expression + ending for expression in _MIXED_CASE for ending in ("", _CONTRACTIONS + "?")),
    *(r"\p{N}", r"\p{N}+", r" ?\p{N}+", r"\p{N}{1,3}"),
    *(rf" ?[^\s\p{{L}}\p{{N}}]+{ending}" for ending in ("", r"[\r\n]*", r"[\r\n/]*")),
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    *(r"\s*[\r\n]+", r"\s+(?!\S)", _SPACES),
}
_OUTSIDE_GROUPS = re.compile(r"\|(?![^(]*\))")
# The usual word first. Else as little as reaches a place from above, or the end.
_WORD = re.compile(
    r" ?[A-Za-z0-9]+(?![A-Za-z0-9'\x80-\U0010ffff])"
    r"|(?s:.)+?(?:(?<=[A-Za-z0-9])(?=[\x00-&(-/:-@\[-`{-\x7f])|(?<=\S)(?= )|\Z)"
)


def make_cut(tokenizer: Tokenizer) -> Cut | None:
    """Return what cuts texts for this tokenizer; None when it does not work as described above."""
    # __getstate__: the part's entry in tokenizer.json; the whole file has megabytes of vocabulary
    normalizer, splitter, model = tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model
    is_nfc = normalizer is not None and json.loads(normalizer.__getstate__()) == {"type": "NFC"}
    if splitter is None or not _splits_words(json.loads(splitter.__getstate__())):
        return None
    if not isinstance(model, BPE) or model.dropout or not (is_nfc or normalizer is None):
        return None
    tokens = tokenizer.get_added_tokens_decoder().values()
    if tokenizer.encode_special_tokens or any(
        t.single_word or t.lstrip or t.rstrip for t in tokens
    ):
        return None
    # One with a space inside could come about where two words are put side by side.
    if any(" " in token.content.lstrip(" ") for token in tokens):
        return None
    # Those that are looked for in the normalised text are looked for after all the others.
    if any(token.normalized for token in tokens) and (
        is_nfc or not all(token.normalized for token in tokens)
    ):
        return None
    # Of several that begin at one place, the longest counts.
    longest_first = sorted((token.content for token in tokens), key=len, reverse=True)
    split = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})").split
    find = _WORD.findall

    def cut(text: str) -> list[str]:
        words: list[str] = []
        for index, part in enumerate(split(text)):
            if index % 2:
                words.append(part)
            elif part:
                words += find(part)
        return words

    return cut


def _splits_words(splitter: dict[str, Any]) -> bool:
    """Tell whether a pre-tokenizer consists of known steps, one of them a known expression."""
    has_expression = False
    for step in splitter.get("pretokenizers", [splitter]):
        if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            has_expression |= step["use_regex"]  # GPT-2's
        elif step["type"] == "Split" and _is_known(step):
            has_expression = True
        elif step["type"] != "Digits":
            return False
    return has_expression


def _is_known(split: dict[str, Any]) -> bool:
    if (split["behavior"], split["invert"]) not in (("Isolated", False), ("Removed", True)):
        return False
    alternatives = set(_OUTSIDE_GROUPS.split(split["pattern"].get("Regex", "")))
    return alternatives <= _ALTERNATIVES and _SPACES in alternatives
