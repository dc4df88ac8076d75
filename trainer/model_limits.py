"""What a model can take: how many tokens it knows, and how long a text it has positions for."""

from __future__ import annotations

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from trainer.errors import ConfigError


def check_model_fits(
    model: PreTrainedModel | PeftModel, *, largest_token_id: int, longest_tokens: int
) -> tuple[str, ...]:
    """Compare the prepared data with the model's tables, and return the notes to print.

    A row that is missing from either table ends a GPU run with an assertion of a kernel.
    `longest_tokens`: of one example, as positions start again with each.
    Raises: ConfigError for ids without an embedding row, or texts longer than learned positions.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    embeddings = base.get_input_embeddings()
    rows = _rows(embeddings)
    if rows is not None and largest_token_id >= rows:
        raise ConfigError(
            f"model.name: the data has token {largest_token_id:,}, the model {rows:,} rows "
            "(counted from 0)",
            rule="every token of the data needs an embedding row",
            fix="use the tokenizer that belongs to this model",
        )
    config = base.config.get_text_config()
    made_for = (
        config.max_position_embeddings if hasattr(config, "max_position_embeddings") else None
    )
    table = _position_rows(base, embeddings)
    if table is not None:
        # OPT's table has two rows more than positions.
        limit = min(table, made_for or table)
        if longest_tokens > limit:
            raise ConfigError(
                f"data.max_length: the longest example has {longest_tokens:,} tokens, the model "
                f"{limit:,} positions",
                rule="this model learned one vector per position and has none beyond",
                fix=f"set data.max_length to {limit}, or choose a model with rotary positions",
            )
    elif made_for and longest_tokens > made_for:
        return (
            f"the longest example has {longest_tokens:,} tokens, the model was made for "
            f"{made_for:,} (max_position_embeddings): what lies beyond is new to it",
        )
    return ()


def _rows(module: nn.Module) -> int | None:
    """Count an embedding's rows, also inside a wrapper of PEFT's and partitioned by ZeRO-3."""
    tables = (part for part in module.modules() if isinstance(part, nn.Embedding))
    return next((table.num_embeddings for table in tables), None)


def _position_rows(model: nn.Module, embeddings: nn.Module) -> int | None:
    """Find the table of learned positions: it sits beside the input embeddings, by whatever name.

    Elsewhere in a model there are others, such as those of a vision tower.
    """
    for parent in model.modules():
        children = dict(parent.named_children())
        if embeddings not in children.values():
            continue
        for name, child in children.items():
            if child is not embeddings and (name == "wpe" or "pos" in name):
                rows = _rows(child)
                if rows is not None:
                    return rows
    return None
