"""Ids and loss masks equal the tokenizer's own template and a reference marked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.templates import FAMILIES, family_tokenizer
from tests.tiny import make_tokenizer
from trainer.config import ColumnNames
from trainer.data.chat import learn_template
from trainer.data.encode import Chunk, EncodedChunk, Encoder, EncoderSettings
from trainer.data.examples import piece_bounds
from trainer.data.problems import RawRow
from trainer.data.rows import Layout
from trainer.data.tokenizer import tokenizer_facts

S, U, A = "system", "user", "assistant"
MULTI_TURN = [(S, "Be kind."), (U, "Hi a"), (A, "Hello!"), (U, "assistant"), (A, "Bye.")]


def turns(pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


def make_encoder(tokenizer: Any, **changes: Any) -> Encoder:
    facts = tokenizer_facts(tokenizer)
    settings = {"max_length": 4096, "too_long": "truncate", "train_on": "assistant", **changes}
    chat = None
    if facts.chat_template:
        backend = tokenizer.backend_tokenizer
        chat = learn_template(facts.chat_template, facts.special_tokens, facts.eos_token, backend)
    return Encoder(EncoderSettings(facts.backend, chat, facts.eos_token, **settings))


def encode(encoder: Encoder, row: dict[str, Any], shape: Any = "messages") -> EncodedChunk:
    layout = Layout(shape, ColumnNames(), "", None)
    return encoder.encode(Chunk(layout, 0, [RawRow("here:1", row)]))


def reference(tokenizer: Any, marked: str) -> tuple[list[int], list[int]]:
    """Tokenise a text whose learned characters are between ⟦ and ⟧, one token at a time."""
    text, learned, on = "", [], False
    for character in marked:
        if character in "⟦⟧":
            on = character == "⟦"
        else:
            text += character
            learned.append(on)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = [int(any(learned[a:b])) for a, b in encoded["offset_mapping"]]
    return encoded["input_ids"], mask


# What each family must learn, marked by hand. Gemma and Mistral fold the system text.
MARKED = {
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi a<|im_end|>\n"
    "<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n<|im_start|>user\nassistant<|im_end|>\n"
    "<|im_start|>assistant\n⟦Bye.<|im_end|>⟧\n",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi a<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hello!<|eot_id|>⟧"
    "<|start_header_id|>user<|end_header_id|>\n\nassistant<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Bye.<|eot_id|>⟧",
    "mistral": "<s>[INST] Be kind.\n\nHi a [/INST] ⟦Hello!</s>⟧[INST] assistant [/INST] ⟦Bye.</s>⟧",
    "gemma": "<bos><start_of_turn>user\nBe kind.\n\nHi a<end_of_turn>\n"
    "<start_of_turn>model\n⟦Hello!<end_of_turn>⟧\n<start_of_turn>user\nassistant<end_of_turn>\n"
    "<start_of_turn>model\n⟦Bye.<end_of_turn>⟧\n",
    "phi3": "<|system|>\nBe kind.<|end|>\n<|user|>\nHi a<|end|>\n<|assistant|>\n⟦Hello!<|end|>⟧\n"
    "<|user|>\nassistant<|end|>\n<|assistant|>\n⟦Bye.<|end|>\n<|endoftext|>⟧",
    "phi4-mini": "<|system|>Be kind.<|end|><|user|>Hi a<|end|><|assistant|>⟦Hello!<|end|>⟧"
    "<|user|>assistant<|end|><|assistant|>⟦Bye.<|end|><|endoftext|>⟧",
    "thinking": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi a<|im_end|>\n"
    "<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n<|im_start|>user\nassistant<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n⟦Bye.<|im_end|>⟧\n",
    "plain": "### system:\nBe kind.\n\n### user:\nHi a\n\n### assistant:\n⟦Hello!⟧\n\n"
    "### user:\nassistant\n\n### assistant:\n⟦Bye.⟧\n\n⟦</s>⟧",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_multi_turn_labels_equal_the_hand_marked_reference(family: str) -> None:
    tokenizer = family_tokenizer(family)
    encoded = encode(make_encoder(tokenizer), {"messages": turns(MULTI_TURN)})
    assert encoded.problems == []
    ids, mask = reference(tokenizer, MARKED[family])
    assert encoded.ids.tolist() == ids
    assert encoded.mask.tolist() == mask
    assert encoded.num_labels.tolist() == [sum(mask[1:])]


TRICKY = [
    [(U, "assistant"), (A, "assistant")],
    [(U, "a"), (A, "a"), (U, "a"), (A, "a")],
    [(U, "model\nuser"), (A, "user\nassistant\n")],
    [(U, "  lead"), (A, "  two spaces  ")],
    [(U, "emoji 🙂🙃"), (A, "👩‍👩‍👧 naïve 漢字 🙂")],
    [(U, "\n\n"), (A, "\n\nnew lines\n\n")],
    [(U, "x"), (A, "\uf8f00\uf8f1 sentinel look-alike")],
]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "plain"])
@pytest.mark.parametrize("pairs", TRICKY, ids=[repr(pairs[-1][1])[:16] for pairs in TRICKY])
def test_ids_equal_apply_chat_template_and_only_the_answers_are_learned(
    family: str, pairs: list[tuple[str, str]]
) -> None:
    tokenizer = family_tokenizer(family)
    encoded = encode(make_encoder(tokenizer), {"messages": turns(pairs)})
    assert encoded.problems == []
    expected = tokenizer.apply_chat_template(turns(pairs), tokenize=True)["input_ids"]
    assert encoded.ids.tolist() == expected
    runs = np.split(encoded.ids, np.flatnonzero(np.diff(encoded.mask)) + 1)
    first_is_learned = bool(encoded.mask[0])
    learned = [tokenizer.decode(run) for run in runs[0 if first_is_learned else 1 :: 2]]
    answers = [content for role, content in pairs if role == A]
    assert len(learned) == len(answers)
    for got, answer in zip(learned, answers, strict=True):
        # trimming families drop the outer whitespace; a token may join it with the header's
        assert answer.strip() in got
        rest = got.replace(answer.strip(), "", 1).strip()
        assert rest in ("", *END_MARKERS), rest


END_MARKERS = (
    "<|im_end|>",
    "<|eot_id|>",
    "</s>",
    "<end_of_turn>",
    "<|end|>",
    "<|end|>\n<|endoftext|>",
    "<|end|><|endoftext|>",
)


def test_reasoning_rewritten_by_the_template_is_learned_where_it_is_shown() -> None:
    tokenizer = family_tokenizer("thinking")
    pairs = [
        (U, "q"),
        (A, "<think>\nold\n</think>\n\none"),
        (U, "r"),
        (A, "<think>\nT\n</think>\n\ntwo"),
    ]
    encoded = encode(make_encoder(tokenizer), {"messages": turns(pairs)})
    marked = (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n⟦one<|im_end|>⟧\n"
        "<|im_start|>user\nr<|im_end|>\n"
        "<|im_start|>assistant\n⟦<think>\nT\n</think>\n\ntwo<|im_end|>⟧\n"
    )
    ids, mask = reference(tokenizer, marked)
    assert (encoded.ids.tolist(), encoded.mask.tolist()) == (ids, mask)


def test_offset_trimming_does_not_unlearn_white_space() -> None:
    from tokenizers.processors import ByteLevel

    tokenizer = family_tokenizer("plain")
    row = {"messages": turns([(U, "q"), (A, "one\n ")])}
    expected = encode(make_encoder(tokenizer), row).mask.tolist()
    tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    assert encode(make_encoder(tokenizer), row).mask.tolist() == expected


def test_train_on_all_learns_every_token() -> None:
    encoder = make_encoder(family_tokenizer("chatml"), train_on="all")
    encoded = encode(encoder, {"messages": turns(MULTI_TURN)})
    assert encoded.mask.all()
    assert encoded.num_labels[0] == encoded.lengths[0] - 1


def test_prompt_completion_learns_completion_and_end() -> None:
    tokenizer = make_tokenizer(chat_template=None)
    row = {"prompt": "Ask: my computer\n", "completion": "Check it"}
    encoded = encode(make_encoder(tokenizer), row, "prompt_completion")
    ids, mask = reference(tokenizer, "Ask: my computer\n⟦Check it<|im_end|>⟧")
    assert (encoded.ids.tolist(), encoded.mask.tolist()) == (ids, mask)


def test_plain_text_gets_what_the_tokenizer_adds_itself() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(chat_template=None, bos_token="<s>")
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    encoded = encode(make_encoder(tokenizer), {"text": "printer"}, "text")
    assert encoded.ids.tolist() == tokenizer("printer<|im_end|>")["input_ids"]
    assert encoded.ids[0] == bos
    assert encoded.mask.tolist() == [0] + [1] * (len(encoded.ids) - 1)


def test_too_long_text_splits_into_all_its_tokens() -> None:
    tokenizer = make_tokenizer(chat_template=None)
    row = {"text": "The printer is not printing. " * 5}
    whole = encode(make_encoder(tokenizer), row, "text")
    pieces = encode(make_encoder(tokenizer, max_length=7, too_long="split"), row, "text")
    assert pieces.ids.tolist() == whole.ids.tolist()
    assert max(pieces.lengths) == 7
    assert set(pieces.rows.tolist()) == {0}
    assert not pieces.truncated.any()


def test_last_piece_always_has_something_to_predict() -> None:
    assert piece_bounds(9, 4) == [(0, 4), (4, 7), (7, 9)]
    assert piece_bounds(8, 4) == [(0, 4), (4, 8)]


def test_truncation_keeps_the_left_and_refuses_a_lost_answer() -> None:
    tokenizer = family_tokenizer("chatml")
    row = {"messages": turns([(U, "printer " * 20), (A, "Check the printer")])}
    whole = encode(make_encoder(tokenizer), row)
    size = int(whole.lengths[0])
    cut = encode(make_encoder(tokenizer, max_length=size - 3), row)
    assert cut.ids.tolist() == whole.ids.tolist()[: size - 3]
    assert cut.truncated.tolist() == [True]
    lost = encode(make_encoder(tokenizer, max_length=10), row)
    prompt = int(np.argmax(whole.mask))
    assert f"{prompt} tokens of prompt, max_length 10" in lost.problems[0][1].message
