"""The others on the same rows: transformers' Trainer with PEFT, and TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from benchmarks.train.rows import NOT_LABELLED, Example, count_tokens, load_examples
from benchmarks.train.setup import (
    ENDLESS,
    LEARNING_RATE,
    LORA_ALPHA,
    LORA_RANK,
    MAX_GRAD_NORM,
    SEED,
    Setup,
)
from benchmarks.train.ways import Choice, Way

Batch = dict[str, torch.Tensor]


def build(setup: Setup, way: Way, choice: Choice | None, *, is_step: bool) -> Trainer:
    """Build the Trainer of a way as its user would. `is_step`: for the one step compared."""
    assert choice is not None
    examples = load_examples(Path(setup.step_examples if is_step else setup.examples))
    arguments = training_arguments(setup, way, choice, 1 if is_step else ENDLESS)
    if way.packs and is_step:  # all packed rows, and so the examples of the other ways
        arguments["gradient_accumulation_steps"] = len(examples)
    build_with = build_trl if way.library == "trl" else build_transformers
    trainer: Trainer = build_with(setup, way, choice, examples, arguments)
    trainer.remove_callback(PrinterCallback)
    return trainer


def steps_per_round(_setup: Setup, trainer: Trainer) -> int:
    """Return the steps of an epoch: a round trains on every row once."""
    arguments = trainer.args
    per_step: int = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    num_rows: int = len(trainer.train_dataset)
    return -(-num_rows // per_step)


def useful_tokens(trainer: Trainer, _rounds: int) -> int:
    """Return the tokens of a round, counted in what the trainer made of the rows."""
    return count_tokens(trainer.train_dataset)


def build_transformers(
    setup: Setup,
    way: Way,
    choice: Choice,
    examples: Sequence[Example],
    arguments: Mapping[str, Any],
) -> Trainer:
    """The tutorial's loop: batches padded to their longest row, or all to the same length."""
    fixed = setup.rows.padded_length(way) if way.pads_to_max else 0
    return Trainer(
        model=get_peft_model(base_model(setup.model, choice.attention), lora_config()),
        args=TrainingArguments(**arguments, remove_unused_columns=False),
        train_dataset=list(examples),
        data_collator=lambda rows: padded(rows, at_least=fixed),
    )


def build_trl(
    setup: Setup,
    way: Way,
    choice: Choice,
    examples: Sequence[Example],
    arguments: Mapping[str, Any],
) -> Trainer:
    """TRL with the flags of the way; the rows are tokenised already."""
    trl, datasets = import_module("trl"), import_module("datasets")
    is_flat = way.is_padding_free and not way.packs
    trainer: Trainer = trl.SFTTrainer(
        model=base_model(setup.model, choice.attention),
        args=trl.SFTConfig(
            **arguments,
            packing=way.packs,
            padding_free=way.is_padding_free,
            max_length=None if is_flat else setup.rows.max_length,
        ),
        train_dataset=datasets.Dataset.from_list(list(examples)),
        processing_class=AutoTokenizer.from_pretrained(setup.model),
        peft_config=lora_config(),
    )
    return trainer


def base_model(folder: str, attention: str, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    model.config.use_cache = False
    return model


def adapted_model(folder: str, dtype: torch.dtype) -> PeftModel:
    """Plain PEFT: the reference's model."""
    return get_peft_model(base_model(folder, "sdpa", dtype), lora_config())


def lora_config() -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        lora_dropout=0.0,
        target_modules="all-linear",
    )


def padded(examples: Sequence[Mapping[str, Any]], *, at_least: int = 0) -> Batch:
    """Shapes: B rows -> (B, longest of them)."""
    longest = max(at_least, *(len(example["input_ids"]) for example in examples))
    shape = (len(examples), longest)
    ids = torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, NOT_LABELLED)
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        ids[row, :length] = torch.tensor(example["input_ids"])
        labels[row, :length] = torch.tensor(example["labels"])
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def training_arguments(setup: Setup, way: Way, choice: Choice, steps: int) -> dict[str, Any]:
    """What every peer is told; nothing is logged, saved or evaluated."""
    sampling = "group_by_length" if way.groups_by_length else "random"
    return {
        "output_dir": str(Path(setup.folder) / way.name),
        "max_steps": steps,
        "per_device_train_batch_size": choice.batch,
        "gradient_accumulation_steps": max(1, setup.rows.units_of_step(way) // choice.batch),
        "train_sampling_strategy": sampling,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "max_grad_norm": MAX_GRAD_NORM,
        "bf16": True,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "torch_compile": way.compiles,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
    }
