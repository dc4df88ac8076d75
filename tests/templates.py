"""Chat templates in the style of common model families, for tests."""

from __future__ import annotations

from typing import Any

from tests.tiny import CHATML, make_tokenizer

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] "
    "+ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4_MINI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] "
    "+ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
# Drops the reasoning of earlier turns, and always writes a reasoning block in the last one.
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' %}{% set thought = '' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{% endif %}"
    "{{ content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN_HEADERS = (
    "{% for message in messages %}{{ '### ' + message['role'] + ':\n' + message['content'] "
    "+ '\n\n' }}{% endfor %}{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)

FAMILIES: dict[str, dict[str, Any]] = {
    "chatml": {"chat_template": CHATML},
    "llama3": {
        "chat_template": LLAMA3,
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "special_tokens": ("<|start_header_id|>", "<|end_header_id|>"),
    },
    "mistral": {
        "chat_template": MISTRAL,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "special_tokens": ("[INST]", "[/INST]"),
    },
    "gemma": {
        "chat_template": GEMMA,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "special_tokens": ("<start_of_turn>", "<end_of_turn>"),
    },
    "phi3": {
        "chat_template": PHI3,
        "eos_token": "<|endoftext|>",
        "special_tokens": ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    },
    "phi4-mini": {
        "chat_template": PHI4_MINI,
        "eos_token": "<|endoftext|>",
        "special_tokens": ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    },
    "thinking": {"chat_template": THINKING},
    "plain": {"chat_template": PLAIN_HEADERS, "eos_token": "</s>", "special_tokens": ()},
}


def family_tokenizer(name: str) -> Any:
    """A tiny tokenizer that has a family's template and special tokens."""
    return make_tokenizer(**FAMILIES[name])
