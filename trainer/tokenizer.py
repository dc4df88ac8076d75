"""The tokenizer of a base model, ready for batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trainer.config import Config, ModelConfig
from trainer.data.tokenizer import configured_template
from trainer.errors import ConfigError
from trainer.model_source import check_model_folder, check_revision, explaining_load, located


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
    check_revision(config.name, config.revision)
    with explaining_load(config.name, config.revision):
        tokenizer = AutoTokenizer.from_pretrained(
            located(config.name),
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


def load_training_tokenizer(config: Config) -> LoadedTokenizer:
    """Load the tokenizer of a run with the chat template its data was prepared with.

    It is saved beside the trained weights, so whoever prompts them later uses the same format.
    Raises: ConfigError, EnvironmentProblem.
    """
    loaded = load_tokenizer(config.model)
    template = configured_template(config)
    if template is not None:
        loaded.tokenizer.chat_template = template
    return loaded


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


def find_tokenizer(
    adapter: Path | None,
    base: str,
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer saved with an adapter (it has the chat template), else the base's.

    Raises: ConfigError or EnvironmentProblem when neither loads.
    """
    if adapter is not None and (adapter / "tokenizer_config.json").is_file():
        base, revision = str(adapter), None
    with explaining_load(base, revision, field="tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            base, revision=revision, trust_remote_code=trust_remote_code
        )
    return tokenizer
