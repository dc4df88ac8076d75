"""The tokenizer of a base model, ready for batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from trainer.config import ModelConfig
from trainer.errors import ConfigError
from trainer.model_source import check_model_folder, expanded, explaining_load


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer, and what was decided while loading it, for the caller to print."""

    tokenizer: PreTrainedTokenizerFast
    notes: tuple[str, ...] = ()


def load_tokenizer(config: ModelConfig) -> LoadedTokenizer:
    """Load the fast tokenizer and make sure it has a pad token.

    Raises: ConfigError or EnvironmentProblem, each with one fix, when it cannot be had.
    """
    check_model_folder(config.name)
    with explaining_load(config.name, config.revision):
        tokenizer = AutoTokenizer.from_pretrained(
            expanded(config.name),
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(
            f"model.name: {config.name} has only a slow tokenizer",
            rule="loss masks come from character offsets, which only fast tokenizers give",
            fix="use a model that ships tokenizer.json, or convert its tokenizer once",
        )
    return LoadedTokenizer(tokenizer, _with_pad_token(tokenizer, config.name))


def _with_pad_token(tokenizer: PreTrainedTokenizerFast, name: str) -> tuple[str, ...]:
    """Give a tokenizer without pad token one it already has, so that no embedding row is added."""
    if tokenizer.pad_token is not None:
        return ()
    for kind, token in (("EOS", tokenizer.eos_token), ("unknown", tokenizer.unk_token)):
        if token is not None:
            tokenizer.pad_token = token
            return (f"tokenizer has no pad token: padding with the {kind} token {token!r}",)
    raise ConfigError(
        f"model.name: the tokenizer of {name} has no pad, end-of-sequence or unknown token",
        rule="batches need a token to pad with",
        fix="set pad_token in the model's tokenizer_config.json",
    )


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Check that every token has an embedding row; a missing one kills a GPU kernel mid-run.

    Raises: ConfigError when the tokenizer knows more tokens than the model.
    """
    embeddings = model.get_input_embeddings().weight
    assert isinstance(embeddings, torch.Tensor)
    rows = embeddings.shape[0]
    if len(tokenizer) > rows:
        raise ConfigError(
            f"model.name: the tokenizer has {len(tokenizer):,} tokens, the model {rows:,} rows",
            rule="every token needs an embedding row",
            fix="use the tokenizer that belongs to this model",
        )


def find_tokenizer(
    adapter: Path | None, base: str, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer saved with an adapter (it has the chat template), else the base's.

    Raises: ConfigError or EnvironmentProblem when neither loads.
    """
    if adapter is not None and (adapter / "tokenizer_config.json").is_file():
        base, revision = str(adapter), None
    with explaining_load(base, revision, field="tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base, revision=revision)
    return tokenizer
