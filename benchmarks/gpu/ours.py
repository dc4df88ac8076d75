"""The seam to RankZero: the one module that knows how its trainer is built and stepped.

The session builds everything as in a real run, from a config file; the base model alone is random
instead of loaded, and the rows come from memory instead of a cache entry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.gpu.case import ALPHA, RANK, Case
from benchmarks.gpu.jobs import Job, Result
from benchmarks.gpu.random_base import replacing_downloads
from benchmarks.gpu.rows import Row, make_rows
from benchmarks.gpu.step_clock import StepClock
from trainer.config import load_config
from trainer.data.collate import MicroBatch, StepShare, collate
from trainer.loss import prepare_loss, summed_loss
from trainer.main import Session
from trainer.run_directory import RunDirectory
from trainer.training import RankZeroTrainer
from trainer.world import World


class RowsInMemory:
    """Prepared data with one split, as the trainer reads it."""

    fingerprint = "benchmark"
    order_keys = None

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.lengths = np.array([len(ids) for ids, _ in rows], np.int32)
        self.num_labels = np.array([int(mask[1:].sum()) for _, mask in rows], np.int32)
        self.largest_token_id = max(int(ids.max()) for ids, _ in rows)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        return self.rows[index]

    def split(self, name: str) -> RowsInMemory | None:
        return self if name == "train" else None


def build(case: Case, folder: Path) -> RankZeroTrainer:
    """Build the trainer of a run: model, adapters, plan, data."""
    config = load_config(_write_config(case, folder), case.settings)
    session = Session(config, World(), RunDirectory(folder / "run"))
    data: Any = RowsInMemory(make_rows(case.rows, case.num_rows))
    with replacing_downloads():
        trainer = session.build_trainer(data, session.batch_plan(data))
    if case.loss is not None:
        trainer.loss_plan = replace(trainer.loss_plan, way=case.loss)
    return trainer


def measure(job: Job, folder: Path) -> Result:
    """Run the trainer's own loop over the case's steps, and return what was measured."""
    case = Case.from_json(job["case"])
    trainer = build(case, folder)
    clock = StepClock(
        trainer.args.device,
        warm_up=case.warm_up,
        limit=case.seconds,
        tokens_so_far=lambda _: trainer.tokens_seen,
    )
    trainer.add_callback(clock)
    loss = trainer.train().training_loss
    return {**clock.result(), "loss": loss}


class Stepper:
    """The trainer's step on rows chosen one call at a time."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.trainer = build(case, folder)
        self.model = self.trainer.accelerator.prepare_model(self.trainer.model)

    def backward(self, micro_batches: Sequence[Sequence[Row]]) -> float:
        """Add one step's gradients and return its loss."""
        rows = [row for micro_batch in micro_batches for row in micro_batch]
        share = StepShare(
            micro_batches=[collate(micro_batch) for micro_batch in micro_batches],
            num_labels=sum(int(mask[1:].sum()) for _, mask in rows),
            lengths=torch.tensor([len(ids) for ids, _ in rows], dtype=torch.int32),
        )
        return float(self.trainer.training_step(self.model, share))

    def update(self) -> None:
        """Make the optimizer and let it take a step: from now on its state is in memory."""
        for parameter in self.trainer.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        self.trainer.create_optimizer().step()
        self.trainer.model.zero_grad()


def build_loss(
    model: PreTrainedModel, device: torch.device
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return (ids, targets) -> summed loss of a row whose every position carries a label.

    The model is wrapped as in training. Shapes: (T,), (T,).
    """
    plan = prepare_loss(model, device.type)
    accelerator = Accelerator(mixed_precision="bf16", cpu=device.type == "cpu")
    wrapped = accelerator.prepare_model(model.train())

    def loss(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(len(ids), device=ids.device)
        boundaries = torch.tensor([0, len(ids)], dtype=torch.int32)
        row = MicroBatch(ids[None], positions[None], positions, targets, boundaries)
        return summed_loss(wrapped, row, plan)

    return loss


def _write_config(case: Case, folder: Path) -> Path:
    base = folder / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text(json.dumps(case.shape), encoding="utf-8")
    placeholder_tokenizer().save_pretrained(base)
    values = {
        "model": {"name": str(base), "quantization": case.quantization},
        "data": {"train": str(folder / "rows.jsonl"), "max_length": case.rows.longest},
        "lora": {"r": RANK, "alpha": ALPHA, "target_modules": "all-linear"},
        "training": {
            "global_batch_size": case.examples_per_step,
            "max_steps": case.warm_up + case.steps,
            "max_tokens_per_device": case.micro_batch_tokens,
            "precision": case.precision,
            "gradient_checkpointing": case.checkpointing,
            "scheduler": "constant",
        },
        "tracking": {"to": []},
        "output_dir": str(folder / "run"),
    }
    path = folder / "run.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def placeholder_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a pad token and no words: the rows are numbers already."""
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, "<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
