"""The base model's tokenizer: its files (for the cache key), and what encoding needs of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import Config, ModelConfig
from trainer.entry import importing
from trainer.errors import ConfigError, DataError
from trainer.model_source import check_revision, explaining_load, located

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# config.json is here because it names the model type, which decides the tokenizer class.
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "spiece*",
    "chat_template*",
    "additional_chat_templates/*",
    "config.json",
    "tokenization_*.py",
)


@dataclass(frozen=True)
class TokenizerFacts:
    """All that encoding needs of a tokenizer. Pickles to worker processes without transformers."""

    backend: str
    """The fast tokenizer, serialised as in tokenizer.json."""
    special_tokens: dict[str, Any]
    eos_token: str | None
    chat_template: str | None
    """The tokenizer's own."""


def tokenizer_files(model: ModelConfig) -> list[Path]:
    """List the files that decide how text becomes ids. Fetches them for a Hub model, once."""
    check_revision(model.name, model.revision)
    folder = Path(model.name).expanduser()
    if not folder.is_dir():
        folder = _hub_snapshot(model)
    found = {file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)}
    return sorted(file for file in found if file.is_file())


def _hub_snapshot(model: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download

    with explaining_load(model.name, model.revision):
        return Path(
            snapshot_download(
                model.name, revision=model.revision, allow_patterns=list(_TOKENIZER_FILES)
            )
        )


def load_tokenizer_facts(config: Config) -> TokenizerFacts:
    """Load the tokenizer and keep what encoding needs. Raises ConfigError without a fast one."""
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()
    model = config.model
    with importing(), explaining_load(model.name, model.revision):  # brings torch along
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            located(model.name),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
        )
    return tokenizer_facts(tokenizer)


def tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> TokenizerFacts:
    """Keep of a loaded tokenizer what encoding needs."""
    if not tokenizer.is_fast:
        raise ConfigError(
            f"model.name: {type(tokenizer).__name__} is a slow tokenizer",
            rule="masks come from character offsets, which only fast tokenizers give",
            fix="convert it once: AutoTokenizer.from_pretrained(..., use_fast=True), then "
            "save_pretrained, which writes tokenizer.json",
        )
    backend = tokenizer.backend_tokenizer
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    return TokenizerFacts(
        backend=backend.to_str(),
        special_tokens=dict(tokenizer.special_tokens_map),
        eos_token=tokenizer.eos_token,
        chat_template=own,
    )


def configured_template(config: Config) -> str | None:
    """Return the template that data.chat_template asks for; None leaves it to the tokenizer."""
    from trainer.data.chat import CHATML

    wanted = config.data.chat_template
    return CHATML if wanted == "chatml" else wanted and read_template(wanted)


def chosen_template(config: Config, facts: TokenizerFacts) -> tuple[str, str]:
    """Return the chat template and where it comes from. Raises DataError when there is none."""
    configured = configured_template(config)
    if configured is not None:
        return configured, f"data.chat_template: {config.data.chat_template}"
    if facts.chat_template is None:
        raise DataError(
            f"the tokenizer of {config.model.name} has no chat template",
            rule="rows with turns are rendered by a chat template",
            fix="set data.chat_template: chatml, or the path of a Jinja file",
        )
    return facts.chat_template, "the tokenizer's own"


def read_template(path: str) -> str:
    """Read a Jinja file named in the config."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data.chat_template: {path} cannot be read: {error}",
            rule="`chatml`, or the path of a Jinja file",
            fix="check the path (relative paths start at the working directory)",
        ) from error


def template_bytes(config: Config) -> Iterator[bytes]:
    """Yield what the configured template contributes to the cache key."""
    wanted = config.data.chat_template
    if wanted is not None:
        yield (wanted if wanted == "chatml" else read_template(wanted)).encode()
