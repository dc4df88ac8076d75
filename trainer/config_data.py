"""The `data` section: what is learned from, and how rows become examples."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictStr

from trainer.config_types import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)

RowShape = Literal["auto", "instruction", "prompt_completion", "messages", "text"]
# A fraction of the rows (0.1) or a number of rows (80).
RowShare = NonNegativeFloat | NonNegativeInt


class ColumnNames(Section):
    """Which column of a row holds what."""

    instruction: StrictStr = "instruction"
    """Task or question of an instruction row."""
    input: StrictStr = "input"
    """Optional context appended to the instruction; used when the column is there."""
    response: StrictStr = "response"
    """Answer of an instruction row."""
    prompt: StrictStr = "prompt"
    """Given text of a prompt and completion row."""
    completion: StrictStr = "completion"
    """Text to learn of a prompt and completion row."""
    messages: StrictStr = "messages"
    """Chat turns, as role/content or as ShareGPT from/value (its `conversations` is found too)."""
    system: StrictStr = "system"
    """Optional per-row system prompt; used when the column is there."""
    text: StrictStr = "text"
    """Plain text."""


class Source(Section):
    """One place rows come from."""

    path: StrictStr = Field(min_length=1)
    """A file (jsonl, json, csv, parquet, txt), a folder of them, or a Hub dataset id."""
    split: StrictStr = "train"
    """Split of a Hub dataset."""
    weight: PositiveFloat = 1.0
    """Times each row is seen per epoch: 2 shows rows twice, 0.5 a seeded half of them."""
    prefix: StrictStr = ""
    """Text put before the prompt (or the plain text), such as `[TASK:SENTIMENT] `."""
    shape: RowShape | None = None
    """Row shape of this source. Default: `data.shape`."""
    columns: ColumnNames | None = None
    """Column names of this source. Default: `data.columns`."""


def _as_sources(value: Any) -> Any:
    """Accept a path, a list of paths, or a list of sources."""
    if value is None:
        return []
    items = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


Sources = Annotated[
    tuple[Source, ...],
    BeforeValidator(_as_sources, json_schema_input_type=str | Source | list[str | Source]),
]


class DataConfig(Section):
    """What is learned from, and how rows become examples."""

    train: Sources = Field(min_length=1)
    """Training rows: a path, a list of paths, or a list of sources."""
    validation: Sources = ()
    """Rows the loss is measured on while training."""
    test: Sources = ()
    """Rows the loss is measured on before and after training."""
    validation_size: RowShare = 0
    """Rows taken from the training sources when `validation` names none: a fraction or a count."""
    test_size: RowShare = 0
    """The same for the test split."""
    shape: RowShape = "auto"
    """How rows are laid out. `auto`: recognised by the columns of the first row."""
    columns: ColumnNames = ColumnNames()
    """Column names, where they differ from the usual ones."""
    system_prompt: StrictStr | None = None
    """System turn for rows that bring none."""
    chat_template: StrictStr | None = None
    """`chatml`, or a Jinja file. Default: the tokenizer's own."""
    train_on: Literal["assistant", "all"] = "assistant"
    """Tokens that carry the loss: what the model must write, or every token."""
    max_length: PositiveInt = 2048
    """Longest example in tokens."""
    too_long: Literal["truncate", "split", "skip"] = "truncate"
    """What happens to a longer one. `split` (plain text only) makes several examples."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`skip` trains without the bad rows and lists them in data_report.json."""
    order: StrictStr = "shuffle"
    """`shuffle`, `given`; easy first: `length`, `column:NAME`, `function:package.module.name`."""
    workers: PositiveInt | None = None
    """Processes that prepare data. Default: one per core once there are enough rows to pay."""
    cache_dir: StrictStr | None = None
    """Prepared data. Default: $RANKZERO_CACHE, else ~/.cache/rankzero."""
