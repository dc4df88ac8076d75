"""How a model is asked: conversations rendered as in training, and the tokens of its answers.

Letters: B prompts answered together, T tokens of the longest of them, N new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from trainer.data.chat import ChatTemplate, learn_template
from trainer.errors import ConfigError, DataError

Message = dict[str, str]  # role, content


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; without it, the likeliest is taken."""

    temperature: float
    top_p: float
    seed: int


class Asker:
    """A model, its tokenizer, and where an answer of theirs begins and ends."""

    def __init__(
        self, label: str, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.label, self.model, self.tokenizer = label, model, tokenizer
        self.template = learned_template(tokenizer)
        self.ends = end_tokens(model, tokenizer, self.template)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Render a conversation whose next turn is the assistant's.

        Raises: ConfigError when the chat template refuses it.
        """
        if not self.tokenizer.chat_template:
            text = "\n\n".join(message["content"] for message in messages)
            return list(self.tokenizer(text).input_ids)
        # A template without a system turn gets it where training put it.
        folded = self.template.fold(list(messages)) if self.template else list(messages)
        try:
            rendered = self.tokenizer.apply_chat_template(
                folded, add_generation_prompt=True, return_dict=True
            )
        except TemplateError as error:
            raise ConfigError(
                f"the chat template of {self.label} refuses this conversation: {error}",
                rule="a template decides which roles it knows",
                fix="leave the system prompt out, and put its text into the prompt",
            ) from error
        return list(rendered["input_ids"])

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling | None = None,
    ) -> list[list[int]]:
        """Answer prompts together; each answer ends before its end token.

        Random generators are left as they were. Ranks: collective under ZeRO-3.
        """
        input_ids, mask = self._padded(prompts)
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            if sampling is not None:
                torch.manual_seed(sampling.seed)
            output = self._generate(input_ids, mask, max_new_tokens, sampling)
        return [self._cut(row) for row in output[:, input_ids.shape[1] :].tolist()]

    def text(self, tokens: Sequence[int]) -> str:
        """Decode an answer."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pad on the left, where new tokens do not follow. Shapes: (B, T), (B, T)."""
        longest = max(map(len, prompts))
        rows = [[self._pad_token] * (longest - len(ids)) + list(ids) for ids in prompts]
        masks = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        device = self.model.device
        return torch.tensor(rows, device=device), torch.tensor(masks, device=device)

    @property
    def _pad_token(self) -> int:
        own = self.tokenizer.pad_token_id
        return int(own) if own is not None else (self.ends or [0])[0]

    def _generate(
        self,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        max_new_tokens: int,
        sampling: Sampling | None,
    ) -> torch.Tensor:
        """Shapes: (B, T), (B, T) -> (B, T + N)"""
        # The model's own settings (temperature, penalties) would fill whatever is left unset here.
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=sampling is not None,
            eos_token_id=self.ends or None,
            pad_token_id=self._pad_token,
            use_cache=True,
        )
        if sampling is not None:
            settings.update(temperature=sampling.temperature, top_p=sampling.top_p, top_k=0)
        model = self.model
        owner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        before, owner.generation_config = owner.generation_config, settings
        try:
            output: torch.Tensor = owner.generate(input_ids=input_ids, attention_mask=mask)
        finally:
            owner.generation_config = before
        return output

    def _cut(self, tokens: list[int]) -> list[int]:
        end = next((i for i, token in enumerate(tokens) if token in self.ends), len(tokens))
        return tokens[:end]


def learned_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
    """Learn how the tokenizer's chat template treats system turns and ends a turn."""
    if not tokenizer.chat_template or not tokenizer.is_fast:
        return None
    try:
        return learn_template(
            tokenizer.chat_template,
            tokenizer.special_tokens_map,
            tokenizer.eos_token,
            tokenizer.backend_tokenizer,
        )
    except DataError:  # good enough to answer with, though not to train on
        return None


def end_tokens(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate | None,
) -> list[int]:
    """The model's own end tokens, the tokenizer's, and the mark that ends a turn of the chat.

    They differ for models whose chat format was added later.
    """
    own = model.generation_config.eos_token_id
    ends = list(own) if isinstance(own, list) else [own]
    if template is not None:
        for marker in (template.turn_marker, template.final_marker):
            tokens = tokenizer(marker, add_special_tokens=False).input_ids
            ends += tokens if len(tokens) == 1 else []
    return list(dict.fromkeys(e for e in (*ends, tokenizer.eos_token_id) if e is not None))
