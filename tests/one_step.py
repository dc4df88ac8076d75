"""One optimizer step's loss and gradients: the trainer's, and an independent reference's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from trainer.config_schema import Config, DataConfig, LoraConfig, ModelConfig, TrainingConfig
from trainer.loss import prepare_loss
from trainer.run_directory import RunDirectory
from trainer.schedule import BatchPlan
from trainer.training import RankZeroTrainer
from trainer.training_arguments import build_training_arguments, to_training_arguments
from trainer.world import World, read_world

VOCABULARY = 500
NUM_EXAMPLES = 8


class MemorySplit:
    """A prepared split that lives in memory: unequal lengths, unequal label counts."""

    order_keys = None

    def __init__(self, num_examples: int = NUM_EXAMPLES, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.rows = []
        for _ in range(num_examples):
            length = int(generator.integers(4, 40))
            ids = generator.integers(5, VOCABULARY, length).astype(np.int32)
            mask = generator.random(length) < generator.random()
            mask[-1] = True
            self.rows.append((ids, mask))
        self.lengths = np.array([len(ids) for ids, _ in self.rows], np.int32)
        self.num_labels = np.array([int(mask[1:].sum()) for _, mask in self.rows], np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        return self.rows[index]


class MemoryData:
    fingerprint = "memory"

    def __init__(self, **splits: MemorySplit) -> None:
        self.splits = splits

    def split(self, name: str) -> MemorySplit | None:
        return self.splits.get(name)


def make_trainer(
    model: torch.nn.Module, folder: Path, *, max_tokens: int, can_pack: bool = True, world: World
) -> RankZeroTrainer:
    config = Config(
        model=ModelConfig(name="unused"),
        data=DataConfig(train=["unused"]),
        lora=LoraConfig(enabled=False),
        training=TrainingConfig(global_batch_size=NUM_EXAMPLES, max_steps=3, warmup_steps=0),
        output_dir=str(folder),
    )
    plan = BatchPlan(NUM_EXAMPLES, 3, 0, max_tokens, max_tokens, NUM_EXAMPLES, can_pack)
    directory = RunDirectory(folder)
    arguments = to_training_arguments(
        config, plan, precision="fp32", device_type="cpu", directory=directory
    )
    data: Any = MemoryData(train=MemorySplit(), validation=MemorySplit(seed=1))
    return RankZeroTrainer(
        config=config,
        plan=plan,
        data=data,
        world=world,
        loss_plan=prepare_loss(model, "cpu"),
        model=model,
        args=build_training_arguments({**arguments, "report_to": "none"}),
    )


def trainer_step(
    model: torch.nn.Module, folder: Path, *, max_tokens: int, can_pack: bool = True
) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss (mean over ranks), gradients, and micro-batches per rank of the trainer's first step."""
    world = read_world()
    trainer = make_trainer(model, folder, max_tokens=max_tokens, can_pack=can_pack, world=world)
    wrapped = trainer.accelerator.prepare(model)
    share = next(iter(trainer.get_train_dataloader()))
    loss = trainer.training_step(wrapped, share)
    if world.world_size > 1:
        torch.distributed.all_reduce(loss)
        loss /= world.world_size
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(loss), gradients, len(share["micro_batches"])


def reference_step(model: torch.nn.Module) -> tuple[float, dict[str, torch.Tensor]]:
    """Each example alone through the plain model; the mean over all labelled tokens."""
    split = MemorySplit()
    total = torch.zeros(())
    for ids, mask in split.rows:
        logits = model(input_ids=torch.tensor(ids, dtype=torch.int64)[None]).logits[0]
        log_probabilities = logits.log_softmax(-1)
        for position in range(1, len(ids)):
            if mask[position]:
                total = total - log_probabilities[position - 1, int(ids[position])]
    loss = total / int(split.num_labels.sum())
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients


def write_step(model_folder: Path, output: Path, max_tokens: int) -> None:
    """Write what this rank got to OUTPUT.RANK."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    loss, gradients, num_micro_batches = trainer_step(model, output.parent, max_tokens=max_tokens)
    torch.save((loss, gradients, num_micro_batches), f"{output}.{read_world().rank}")
