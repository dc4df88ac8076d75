"""The others on the same rows: transformers' Trainer with PEFT, and TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.utils.import_utils import is_flash_attn_2_available

from benchmarks.gpu.case import ALPHA, RANK, Case
from benchmarks.gpu.jobs import Job, Result
from benchmarks.gpu.ours import placeholder_tokenizer
from benchmarks.gpu.random_base import random_base
from benchmarks.gpu.rows import Row, make_rows
from benchmarks.gpu.step_clock import StepClock

_NOT_LABELLED = -100
Batch = dict[str, torch.Tensor]
Collator = Callable[[Sequence[Mapping[str, Any]]], Batch]


def measure(job: Job, folder: Path) -> Result:
    """Train with the contender of the case."""
    case = Case.from_json(job["case"])
    is_trl = case.contender.startswith("trl")
    return train_trl(case, folder) if is_trl else train_transformers(case, folder)


def train_transformers(case: Case, folder: Path) -> Result:
    """The tutorial: each batch padded to its longest row."""
    model = get_peft_model(plain_base(case), lora_config())
    if case.checkpointing:
        model.enable_input_require_grads()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            **_arguments(case, folder), gradient_checkpointing=case.checkpointing
        ),
        train_dataset=_examples(case),
        data_collator=pad_to_longest,
    )
    return _timed(trainer, case)


def train_trl(case: Case, folder: Path) -> Result:
    """TRL as it comes (padded), or with its packing."""
    trl, datasets = import_module("trl"), import_module("datasets")
    is_packed = case.contender == "trl packing"
    arguments = _arguments(case, folder)
    if is_packed:  # as many full rows as hold the tokens of one step of the others
        rows_at_once = max(1, case.micro_batch_tokens // case.rows.longest)
        step_tokens = case.examples_per_step * (case.rows.mean or case.rows.longest)
        arguments["per_device_train_batch_size"] = rows_at_once
        arguments["gradient_accumulation_steps"] = max(
            1, round(step_tokens / (rows_at_once * case.rows.longest))
        )
    trainer = trl.SFTTrainer(
        model=plain_base(case),
        args=trl.SFTConfig(
            **arguments,
            gradient_checkpointing=case.checkpointing,
            packing=is_packed,
            max_length=case.rows.longest,
        ),
        train_dataset=datasets.Dataset.from_list(_examples(case)),
        processing_class=placeholder_tokenizer(),
        peft_config=lora_config(),
    )
    return _timed(trainer, case)


def plain_base(case: Case, precision: torch.dtype | None = None) -> PreTrainedModel:
    """The random base with the best attention the plain libraries find here."""
    device = torch.device(case.device)
    dtype = precision or (torch.bfloat16 if case.precision == "bf16" else torch.float32)
    has_flash = is_flash_attn_2_available() and dtype is not torch.float32
    model = random_base(
        AutoConfig.for_model(**case.shape),
        dtype=dtype,
        device=device,
        attention="flash_attention_2" if has_flash and device.type == "cuda" else None,
    )
    model.config.use_cache = False
    return model


def plain_adapted(case: Case, precision: torch.dtype) -> PeftModel:
    return get_peft_model(plain_base(case, precision), lora_config())


def lora_config() -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules="all-linear")


def pad_to_longest(examples: Sequence[Mapping[str, Any]]) -> Batch:
    """Shapes: B rows -> (B, longest of them)."""
    longest = max(len(example["input_ids"]) for example in examples)

    def padded(rows: Iterable[Sequence[int]], value: int) -> torch.Tensor:
        return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])

    return {
        "input_ids": padded((example["input_ids"] for example in examples), 0),
        "labels": padded((example["labels"] for example in examples), _NOT_LABELLED),
        "attention_mask": padded(([1] * len(example["input_ids"]) for example in examples), 0),
    }


def to_example(row: Row) -> dict[str, list[int]]:
    ids, mask = row
    labels = [
        int(i) if is_target else _NOT_LABELLED for i, is_target in zip(ids, mask, strict=True)
    ]
    return {"input_ids": ids.tolist(), "labels": labels}


def _examples(case: Case) -> list[dict[str, list[int]]]:
    return [to_example(row) for row in make_rows(case.rows, case.num_rows)]


def _arguments(case: Case, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "run"),
        "max_steps": case.warm_up + case.steps,
        "per_device_train_batch_size": case.micro_batch_examples,
        "gradient_accumulation_steps": max(1, case.examples_per_step // case.micro_batch_examples),
        "learning_rate": 2e-4,
        "lr_scheduler_type": "constant",
        "bf16": case.precision == "bf16",
        "use_cpu": case.device == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _timed(trainer: Trainer, case: Case) -> Result:
    """Train, counting the tokens that are no padding as batches are made, in the order of use."""
    counts: list[int] = []
    collate: Collator = trainer.data_collator

    def counting(examples: Sequence[Mapping[str, Any]]) -> Batch:
        batch = collate(examples)
        mask = batch.get("attention_mask")
        counts.append(batch["input_ids"].numel() if mask is None else int(mask.sum()))
        return batch

    trainer.data_collator = counting
    trainer.remove_callback(PrinterCallback)
    accumulated = trainer.args.gradient_accumulation_steps
    clock = StepClock(
        trainer.args.device,
        warm_up=case.warm_up,
        limit=case.seconds,
        tokens_so_far=lambda step: sum(counts[: step * accumulated]),
    )
    trainer.add_callback(clock)
    loss = trainer.train().training_loss
    return {**clock.result(), "loss": loss}
