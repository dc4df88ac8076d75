"""Tiny real models and tokenizers for tests: every architecture's own code, random weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

EXAMPLE_DATA = Path(__file__).parent.parent / "examples" / "data"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY_SIZE = 512
_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, **_HEADS},
    "qwen2": {**_SIZES, **_HEADS},
    "mistral": {**_SIZES, **_HEADS, "sliding_window": None},
    "phi3": {**_SIZES, **_HEADS, "pad_token_id": 0},
}


@cache
def _trained_tokenizer(special_tokens: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    lines = [
        turn["content"]
        for line in (EXAMPLE_DATA / "support_chats.jsonl").read_text(encoding="utf-8").splitlines()
        for turn in json.loads(line)["messages"]
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer.to_str()


def make_tokenizer(
    *,
    chat_template: str | None = CHATML,
    eos_token: str = "<|im_end|>",
    bos_token: str | None = None,
    pad_token: str | None = "<pad>",
    special_tokens: tuple[str, ...] = ("<|im_start|>",),
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the example chats."""
    named = [token for token in (pad_token, eos_token, bos_token) if token]
    vocabulary = tuple(dict.fromkeys([*named, *special_tokens]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer(vocabulary)),
        eos_token=eos_token,
        bos_token=bos_token,
        pad_token=pad_token,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def make_model_folder(
    folder: Path, architecture: str = "llama", *, seed: int = 0, tokenizer: Any = None, **sizes: Any
) -> Path:
    """Write config, random float32 weights and a tokenizer, as a Hub snapshot would have them."""
    tokenizer = tokenizer or make_tokenizer()
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{**ARCHITECTURES[architecture], **sizes},
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
