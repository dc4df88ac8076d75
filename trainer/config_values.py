"""Spellings whose value has to be translated too, each on its own. PURE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Settings = dict[str, Any]


class RefusedError(Exception):
    """A value that has no counterpart here; the text says what to write instead."""


@dataclass(frozen=True)
class Translation:
    """A spelling's canonical setting, and what a value of it sets."""

    target: str
    translate: Callable[[Any], Settings]


def _table(target: str, names: Mapping[str, str]) -> Translation:
    """Translate known values; others go to validation, which lists what is accepted."""
    return Translation(
        target, lambda v: {target: names.get(v.lower(), v) if isinstance(v, str) else v}
    )


def _only(target: str, accepted: tuple[Any, ...], instead: str) -> Translation:
    """Accept values that say what happens anyway, and refuse the others."""

    def translate(value: Any) -> Settings:
        if value not in accepted:
            raise RefusedError(f"{value!r} is not possible; {instead}")
        return {}

    return Translation(target, translate)


def _if_true(target: str, value: Any, otherwise: Settings) -> Translation:
    def translate(given: Any) -> Settings:
        return {target: value} if to_claim(given) else otherwise

    return Translation(target, translate)


def to_claim(value: Any) -> bool:
    """Return a boolean as it is. Raises: RefusedError for anything else."""
    if not isinstance(value, bool):
        raise RefusedError(f"must be true or false, not {value!r}")
    return value


_OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_hf": "adamw_torch",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
}


def _to_attention(value: Any) -> Settings:
    return {"model.attention": "flash_attention_2"} if to_claim(value) else {}


def _to_max_steps(value: Any) -> Settings:
    # -1 is how the Hugging Face arguments say "not given".
    return {} if value == -1 else {"training.max_steps": value}


def _to_text_column(value: Any) -> Settings:
    return {"data.columns.text": value, "data.shape": "text"}


def _to_checkpointing(value: Any) -> Settings:
    if value not in ({}, {"use_reentrant": False}):
        raise RefusedError(
            f"{value!r} is not possible; recomputation is always non-reentrant, drop the key"
        )
    return {}


_ASSISTANT = "assistant"
_TRAIN_ON = "data.train_on"

TRANSLATED: dict[str, Translation] = {
    "max_steps": Translation("training.max_steps", _to_max_steps),
    "dataset_text_field": Translation("data.columns.text", _to_text_column),
    "use_flash_attention": Translation("model.attention", _to_attention),
    "use_flash_attention_2": Translation("model.attention", _to_attention),
    "optim": _table("training.optimizer", _OPTIMIZERS),
    "gradient_checkpointing_kwargs": Translation(
        "training.gradient_checkpointing", _to_checkpointing
    ),
    "completion_only_loss": _if_true(_TRAIN_ON, _ASSISTANT, {_TRAIN_ON: "all"}),
    "assistant_only_loss": _if_true(_TRAIN_ON, _ASSISTANT, {_TRAIN_ON: "all"}),
    "train_on_inputs": _if_true(_TRAIN_ON, "all", {_TRAIN_ON: _ASSISTANT}),
    "task_type": _only(
        "lora.enabled", ("CAUSAL_LM",), "only causal language models are trained here"
    ),
    "metric_for_best_model": _only(
        "evaluation.load_best", ("eval_loss", "loss"), "the best model is that of lowest eval_loss"
    ),
    "greater_is_better": _only(
        "evaluation.load_best", (False,), "a lower validation loss is better; drop the key"
    ),
    # Rows are packed where it helps, which changes no number: both wishes are met.
    "packing": _only("data.max_length", (True, False), "write true or false, or drop the key"),
}
