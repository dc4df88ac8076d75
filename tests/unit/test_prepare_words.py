"""Tokenising word by word gives what the tokenizer itself gives, for every way of cutting words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from tests.tiny import make_tokenizer
from trainer.data import tokenise
from trainer.data.chat import Span
from trainer.data.tokenise import Tokeniser
from trainer.data.words import make_cut

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_END = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+"
# Source: tokenizer.json of Llama-3, Qwen2.5, Phi-4-mini and GPT-OSS (o200k), Mistral-Nemo, Qwen3.5.
PATTERNS = {
    "llama3": _CONTRACTION
    + rf"|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_SIGNS}[\r\n]*"
    + _END,
    "qwen2": _CONTRACTION + rf"|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_SIGNS}[\r\n]*" + _END,
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}{_SIGNS}[\r\n/]*" + _END,
    "nemo": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}{_SIGNS}[\r\n/]*" + _END,
    "qwen3.5": _CONTRACTION
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    + _END,
}
WAYS = ["gpt2", "digits", *PATTERNS]
# Letters, marks, digits, spaces of many scripts, controls: what engines are apt to disagree on.
ODD = (
    "aZ09 \t\n\r\x0b\x0c\x1c\x1f\x00\x7f'\u2019\"-_/\\.,!?<|>=`"
    "\x85\xa0\u017fßéÅİ\u0131ǅʰ½²Ⅷ٣\u0966一か한गि\u0301\u0338\u0327\u200b\u200d\u2028\u3000\ufeff\u180e"
    "\u212b\u037e\u1fef\u2001🙂👩🏽\U0001e900\U000110a0"
)
PIECES = ["'s", "'RE", "'ll", "don't", "<|im_start|>", "<|im_end|>", "  ", "\n\n", "word", "1234"]


def byte_level(way: str, *, is_nfc: bool = False) -> Tokenizer:
    tokenizer = make_tokenizer().backend_tokenizer
    steps: list[pre_tokenizers.PreTokenizer] = []
    if way == "digits":
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    elif way in PATTERNS:
        steps.append(pre_tokenizers.Split(Regex(PATTERNS[way]), "isolated"))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=way not in PATTERNS)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    if is_nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = None
    return tokenizer


def odd_texts(number: int) -> list[str]:
    generator = random.Random(number)
    return [
        "".join(generator.choices([*ODD, *ODD[:12], *PIECES], k=generator.randint(0, 40)))
        for _ in range(number)
    ]


def some_spans(text: str) -> list[Span]:
    generator = random.Random(text)
    a, b, c, d = sorted(generator.choices(range(len(text) + 1), k=4))
    return [(start, end) for start, end in ((a, b), (c, d)) if start < end]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut whether it pays or not, and leave the check at run time out: the tests are the check."""
    monkeypatch.setattr(tokenise, "_MOST_NEW", 2.0)
    monkeypatch.setattr(Tokeniser, "_is_own", lambda *_: True)


def refuse(*_: object) -> None:
    raise AssertionError("not expected")


def assert_same(tokenizer: Tokenizer, texts: list[str], *, words_only: bool = True) -> None:
    """Compare with the tokenizer's own ids, and masks by its own offsets."""
    tokeniser, spans = Tokeniser(tokenizer), [some_spans(text) for text in texts]
    assert (tokeniser._by_word(texts) is not None) == words_only
    ids, mask, lengths = tokeniser(texts, spans)
    own = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert ids.tolist() == [number for encoding in own for number in encoding.ids]
    assert lengths.tolist() == [len(encoding.ids) for encoding in own]
    expected = [
        any(start < end_of_span and start_of_span < end for start_of_span, end_of_span in row)
        for encoding, row in zip(own, spans, strict=True)
        for start, end in encoding.offsets
    ]
    assert mask.astype(bool).tolist() == expected


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("is_nfc", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_ids_and_masks_of_odd_texts_are_the_tokenizers_own(way: str, is_nfc: bool) -> None:
    assert_same(byte_level(way, is_nfc=is_nfc), odd_texts(1500))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("way", WAYS)
def test_every_character_of_the_basic_plane_around_every_kind_of_cut(way: str) -> None:
    characters = [chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000]
    texts = [f"a{c}1 {c} {c}{c}\n'{c}s.{c} b{c}" for c in characters]
    assert_same(byte_level(way, is_nfc=True), texts[:: 3 if way == "gpt2" else 17])


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("way", WAYS)
def test_no_pre_token_crosses_a_cut(way: str) -> None:
    tokenizer = byte_level(way)
    cut = make_cut(tokenizer)
    assert cut is not None and tokenizer.pre_tokenizer is not None
    texts = [text for text in odd_texts(1000) if "<|im" not in text]
    for text in texts:
        words = cut(text)
        assert "".join(words) == text
        ends = {end for _, (_, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)}
        assert set(np.cumsum([len(word) for word in words])) <= ends


@pytest.mark.usefixtures("always")
def test_of_added_tokens_that_begin_alike_the_longest_counts() -> None:
    tokenizer = byte_level("gpt2")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<a", "<a>b")])
    assert_same(tokenizer, ["x<a>b <a> <a>bc <<a"])


def test_usual_text_is_cut_into_words() -> None:
    cut = make_cut(byte_level("llama3"))
    assert cut is not None
    text = "<|im_start|>user\nIt's 42, isn't it?<|im_end|>"
    words = ["<|im_start|>", "user", "\nIt's", " 42", ",", " isn't", " it", "?", "<|im_end|>"]
    assert cut(text) == words


def test_words_are_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokeniser = Tokeniser(byte_level("gpt2"))
    texts = ["It's the same old song, " * 4, "the same song, the same."]
    first = tokeniser(texts, [[(0, 5)], []])
    monkeypatch.setattr(Tokeniser, "_is_own", lambda *_: True)
    monkeypatch.setattr(Tokeniser, "_whole", refuse)
    for ours, before in zip(tokeniser(texts, [[(0, 5)], []]), first, strict=True):
        np.testing.assert_array_equal(ours, before)


@pytest.mark.usefixtures("always")
def test_words_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenise, "_MOST_KEPT", 500)
    tokenizer = byte_level("gpt2")
    tokeniser = Tokeniser(tokenizer)
    for number in range(20):
        text = f"<|im_start|>number {number} is {'long' * 20}{number}"
        ids, _, _ = tokeniser([text], [[]])
        assert ids.tolist() == tokenizer.encode(text).ids
        assert len(tokeniser._kept) < 20


def test_texts_of_new_words_only_are_left_to_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokeniser, "_keep", refuse)
    assert_same(byte_level("gpt2"), ["all of this is new"], words_only=False)


def test_a_cut_that_is_not_the_tokenizers_is_noticed_and_dropped() -> None:
    tokenizer = byte_level("gpt2")
    tokeniser = Tokeniser(tokenizer)
    tokeniser._cut = list  # every character a word
    text = "the same the same the same the same"
    ids, _, _ = tokeniser([text], [[]])
    assert ids.tolist() == tokenizer.encode(text).ids
    assert tokeniser._cut is None


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("texts", [[], [""], ["", "a", ""], [" "]])
def test_texts_with_nothing_in_them(texts: list[str]) -> None:
    ids, mask, lengths = Tokeniser(byte_level("gpt2"))(texts, [[] for _ in texts])
    assert len(ids) == len(mask) == lengths.sum()
    assert len(lengths) == len(texts)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("unknown", [None, "<pad>"])
def test_a_vocabulary_that_lacks_bytes(unknown: str | None) -> None:
    settings = json.loads(byte_level("gpt2").to_str())
    del settings["model"]["vocab"]["Ą"]  # byte 4
    settings["model"]["unk_token"] = unknown
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    texts = ["fine", "a\x04b", "\x04 fine", "fine\x04"]
    assert_same(tokenizer, texts, words_only=unknown is not None)


def _set(part: str, value: object) -> Callable[[Tokenizer], None]:
    return lambda tokenizer: setattr(tokenizer, part, value)


def _add(content: str, **how: bool) -> Callable[[Tokenizer], None]:
    return lambda tokenizer: tokenizer.add_tokens([AddedToken(content, **how)]) and None


UNUSUAL = {
    "prefix space": _set("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "metaspace": _set("pre_tokenizer", pre_tokenizers.Metaspace()),
    "no splitter": _set("pre_tokenizer", None),
    "unknown expression": _set(
        "pre_tokenizer", pre_tokenizers.Split(Regex(r"\w+ \w+|\s+|."), "isolated")
    ),
    "joins what it finds": _set(
        "pre_tokenizer",
        pre_tokenizers.Split(Regex(r" ?\p{L}+|\s+(?!\S)|\s+"), "merged_with_next"),
    ),
    "lower case": _set("normalizer", normalizers.Lowercase()),
    "stripping token": _add("<tag>", lstrip=True, normalized=False),
    "token of several words": _add("<the tag>", normalized=False),
    "tokens looked for later": _add("<tag>", normalized=True),
    "special tokens as text": _set("encode_special_tokens", True),
}


@pytest.mark.parametrize("change", UNUSUAL)
def test_other_tokenizers_are_left_alone(change: str) -> None:
    tokenizer = byte_level("gpt2")
    UNUSUAL[change](tokenizer)
    assert make_cut(tokenizer) is None
    assert_same(tokenizer, ["Hello there <tag> x", "<the tag>"] * 3, words_only=False)
