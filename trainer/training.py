"""The training loop: transformers' Trainer, subclassed where one step is one global batch.

In Trainer's terms `gradient_accumulation_steps` is 1 and a batch is this rank's share of a step
(`StepShare`); `training_step` walks through its micro-batches and lets gradients meet other ranks
on the last one only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback
from transformers.trainer_utils import EvalLoopOutput

from trainer.config import Config
from trainer.data.collate import (
    EvaluationDataset,
    MicroBatch,
    StepDataset,
    StepShare,
    make_loader,
)
from trainer.data.places import name_rows
from trainer.data.store import PreparedData, PreparedSplit, SplitName
from trainer.errors import TrainingFailed
from trainer.flops import model_flops, peak_flops
from trainer.longest_batch import try_longest
from trainer.loss import LossPlan, summed_loss
from trainer.memory_report import memory_metrics
from trainer.neftune import EmbeddingNoise
from trainer.resumable import ResumableTrainer
from trainer.schedule import BatchPlan
from trainer.throughput import Throughput
from trainer.world import World

# Trainer's prefix of a metric -> the split it was measured on.
_SPLIT_OF: dict[str, SplitName] = {"eval": "validation", "test": "test"}
# Trainer computes these from a batch size of one, or not at all.
_MEANINGLESS = ("eval_steps_per_second", "test_steps_per_second", "total_flos")


class RankZeroTrainer(ResumableTrainer):
    """Trainer whose step is exactly one global batch, on any number of ranks."""

    def __init__(
        self,
        *,
        config: Config,
        plan: BatchPlan,
        data: PreparedData,
        world: World,
        loss_plan: LossPlan,
        **arguments: Any,
    ) -> None:
        self.config, self.plan, self.data, self.world = config, plan, data, world
        self.loss_plan = loss_plan
        self._evaluation_datasets: dict[SplitName, EvaluationDataset] = {}
        super().__init__(**arguments)
        self.throughput = Throughput(
            model_flops(self.model),
            world_size=world.world_size,
            peak=peak_flops(self.args.device),
        )
        self.remove_callback(PrinterCallback)
        alpha = config.training.neftune_noise_alpha
        self.noise = None if alpha is None else EmbeddingNoise(self.model, alpha)

    # -- data ---------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[StepShare]:
        """The steps of the run, read as they are: Accelerate would shard them a second time."""
        return self._loader(self._train_dataset(), first=self.start.step)

    def _run_epoch(self, *arguments: Any, **named: Any) -> None:
        if not self.control.should_training_stop:  # as early stopping of an earlier attempt does
            try_longest(self, self._train_dataset())
        super()._run_epoch(*arguments, **named)

    def _train_dataset(self) -> StepDataset:
        return StepDataset(
            self._split("train"),
            num_steps=self.plan.num_steps,
            global_batch_size=self.plan.global_batch_size,
            seed=self.config.seed,
            rank=self.world.rank,
            world_size=self.world.world_size,
            max_tokens=self.plan.max_tokens,
            max_examples=self.plan.max_examples,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[MicroBatch]:
        """This rank's micro-batches of a split, given by name."""
        name: SplitName = eval_dataset or "validation"
        if name not in self._evaluation_datasets:
            self._evaluation_datasets[name] = EvaluationDataset(
                self._split(name),
                rank=self.world.rank,
                world_size=self.world.world_size,
                max_tokens=self.plan.max_evaluation_tokens,
                max_examples=self.plan.max_examples,
            )
        return self._loader(self._evaluation_datasets[name])

    def _split(self, name: SplitName) -> PreparedSplit:
        split = self.data.split(name)
        if split is None:
            raise ValueError(f"the data has no {name} split")
        return split

    def _loader(
        self, dataset: StepDataset | EvaluationDataset, *, first: int = 0
    ) -> DataLoader[Any]:
        training = self.config.training
        return make_loader(
            dataset,
            first=first,
            num_workers=training.dataloader_workers,
            pin_memory=training.dataloader_pin_memory and self.args.device.type == "cuda",
        )

    # -- one step -----------------------------------------------------------------------------

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: StepShare,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Backward through all micro-batches; returns this rank's part of the step's mean loss.

        The loss of a micro-batch is its sum over labelled tokens x W / labelled tokens of the
        global batch: data parallelism averages over the W ranks, so the gradient is that of the
        mean over every labelled token of the step, however the step is cut.
        """
        model.train()
        self.open_step()
        micro_batches = inputs["micro_batches"]
        scale = self.world.world_size / max(1, inputs["num_labels"])
        losses: list[torch.Tensor] = []
        for number, micro_batch in enumerate(micro_batches, 1):
            self.host.stop_if_agreed()
            is_last = number == len(micro_batches)
            with self._gradient_sync(model, is_last=is_last):
                moved = micro_batch.to(self.args.device)
                if self.noise is not None:
                    self.noise.follow(moved.position_ids)
                loss = scale * summed_loss(model, moved, self.loss_plan)
                losses.append(loss.detach())
                if is_last and self.is_deepspeed_enabled:  # it updates inside `backward`
                    self._require_finite_step(losses)
                self.accelerator.backward(loss)
        if not self.is_deepspeed_enabled:
            self._require_finite_step(losses)
        self.tokens_seen += int(inputs["lengths"].sum())
        self.throughput.add(inputs)
        self.close_step()
        return torch.stack(losses).sum()

    def _require_finite_step(self, losses: list[torch.Tensor]) -> None:
        """Stop before an update that would ruin the run. The one question to the device in a step.

        Raises: TrainingFailed naming the rows whose loss is not a number.
        """
        if math.isfinite(torch.stack(losses).sum()):
            return
        step = self.state.global_step
        dataset = self._train_dataset()
        bad = [
            example
            for members, loss in zip(dataset.members(step), losses, strict=True)
            if not math.isfinite(loss)
            for example in members
        ]
        raise TrainingFailed(
            f"the loss of step {step + 1} is not a finite number, on the training rows "
            f"{name_rows(dataset.split, bad, self.config.data)}",
            rule=f"nothing is learned from such a loss: the weights are still those of step {step}",
            fix="look at these rows; if they are in order, lower training.learning_rate, warm up "
            "longer, or use training.precision: bf16",
        )

    def _gradient_sync(self, model: torch.nn.Module, *, is_last: bool) -> Any:
        """Accumulate locally, and let gradients meet the other ranks on the last micro-batch.

        DeepSpeed reads its accumulation boundary from the same flag.
        """
        self.accelerator.gradient_state._set_sync_gradients(is_last)
        if is_last or self.is_deepspeed_enabled:
            return nullcontext()
        return self.accelerator.no_sync(model)

    # -- evaluation ---------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: DataLoader[MicroBatch],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Mean loss over every labelled token of a split; the same on any number of ranks."""
        model = self._model_for_evaluation()
        was_training = model.training
        model.eval()
        losses, num_labels_here = [], 0
        with torch.no_grad():
            for micro_batch in dataloader:
                self.host.stop_if_agreed()
                moved = micro_batch.to(self.args.device)
                losses.append(summed_loss(model, moved, self.loss_plan))
                num_labels_here += len(moved.targets)
        model.train(was_training)
        # To the host first: MPS has no float64.
        loss_sum_here = torch.stack(losses).cpu().double().sum()
        loss_sum, num_labels = self._sum_over_ranks(
            torch.stack([loss_sum_here, torch.tensor(float(num_labels_here)).double()])
        )
        mean = loss_sum / max(1.0, num_labels)
        # Here, before a callback takes it for the best one.
        self._require_finite(mean, f"{_SPLIT_OF.get(metric_key_prefix, metric_key_prefix)} loss")
        metrics = {
            f"{metric_key_prefix}_loss": mean,
            f"{metric_key_prefix}_labels": int(num_labels),
        }
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics=metrics,
            num_samples=len(dataloader.dataset.split),  # type: ignore[attr-defined]
        )

    def evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
        """As Trainer's; its time does not count as training time."""
        with self._clock_stopped():
            metrics: dict[str, float] = super().evaluate(*arguments, **keywords)
        return metrics

    def held_out_losses(self) -> dict[str, float]:
        """Loss of the validation and test splits, as far as there are any."""
        losses: dict[str, float] = {}
        for prefix, split in _SPLIT_OF.items():
            if self.data.split(split) is not None:
                metrics = self.evaluate(split, metric_key_prefix=prefix)
                losses[split] = metrics[f"{prefix}_loss"]
        return losses

    def prepare_for_evaluation(self) -> None:
        """Put the model in the state `train` would have put it in, when `train` is not called."""
        self.model_wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=True)

    def _model_for_evaluation(self) -> torch.nn.Module:
        """The engine under DeepSpeed (it gathers parameters), else the bare model.

        DDP's wrapper is left out: it would talk to the other ranks, and there is nothing to say.
        """
        model: torch.nn.Module = self.model_wrapped if self.is_deepspeed_enabled else self.model
        return model

    def _sum_over_ranks(self, values: torch.Tensor) -> list[float]:
        if self.world.world_size > 1:
            on_device = values.to(self.args.device)
            torch.distributed.all_reduce(on_device)
            values = on_device.cpu()
        return [float(value) for value in values]

    # -- logging and saving -------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add throughput and memory to a training line; stop on a loss that is not a number.

        Raises: TrainingFailed on a non-finite loss.
        """
        for name in [name for name in logs if name.endswith(_MEANINGLESS)]:
            del logs[name]
        if "train_runtime" in logs:
            logs.update(self._rates())
        if "loss" in logs:
            self._require_finite(logs["loss"], "training loss")
            logs.update(self.throughput.read())
            logs["tokens"] = self.tokens_seen
            logs.update(memory_metrics(self.args.device))
        super().log(logs)

    def _rates(self) -> dict[str, float]:
        """Training time alone; Trainer would count evaluations, and a step as one sample."""
        seconds = self.training_seconds
        steps = self.state.global_step
        return {
            "train_runtime": seconds,
            "train_steps_per_second": steps / seconds,
            "train_samples_per_second": steps * self.plan.global_batch_size / seconds,
            "train_tokens_per_second": self.tokens_seen / seconds,
        }

    def _require_finite(self, loss: float, name: str) -> None:
        if not math.isfinite(loss):
            raise TrainingFailed(
                f"the {name} is {loss} at step {self.state.global_step}",
                rule="a loss that is not a finite number cannot be learned from",
                fix="lower training.learning_rate, warm up longer, or use training.precision: bf16",
            )

    def save(self) -> None:
        """As its parent; what blocks training does not count as training time."""
        with self._clock_stopped():
            super().save()

    @contextmanager
    def _clock_stopped(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.throughput.leave_out(seconds)
        self._seconds_stopped += seconds
