"""The story of a run: data, model, training, and what is left behind."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import TrainerCallback, set_seed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from trainer import interruption
from trainer.beginning import Beginning
from trainer.callbacks.answers import answer_callbacks
from trainer.callbacks.baseline import BaselineCallback
from trainer.callbacks.best_model import BestModelCallback, EarlyStoppingCallback
from trainer.callbacks.cadence import CadenceCallback
from trainer.callbacks.diagnostics import DiagnosticsCallback
from trainer.callbacks.metrics import MetricsCallback
from trainer.callbacks.progress import ProgressCallback
from trainer.callbacks.take_up import TakeUpCallback
from trainer.checkpoints.folder import checkpoint_name
from trainer.checkpoints.resume import AUTO, NEVER, Start
from trainer.checkpoints.saver import Checkpointer, publish
from trainer.config import Config, load_config
from trainer.data.store import PreparedData
from trainer.deepspeed_setup import deepspeed_arguments
from trainer.errors import EnvironmentProblem, Interrupted
from trainer.failures import explained
from trainer.fast_step import make_fast, tokens_of_run
from trainer.host_group import AgreedStop
from trainer.loss import LossPlan
from trainer.memory_report import memory_line
from trainer.merge_after_training import merge_after_training
from trainer.model import BuiltModel, build_model, parameter_line
from trainer.model_limits import check_model_fits
from trainer.packing_proof import packing_is_exact
from trainer.precision import choose_device, choose_precision, probe_native_bf16
from trainer.prepared_data import counts_line, longest_example, prepared_for_rank, required_split
from trainer.progressive_rank import ProgressiveRankCallback
from trainer.publication import check_publication, publish_run
from trainer.report.page import write_report
from trainer.results import RunResults
from trainer.resumable import GO_ON
from trainer.run_check import check_run
from trainer.run_directory import RunDirectory, write_json
from trainer.run_identity import describe_run
from trainer.schedule import BatchPlan, make_batch_plan
from trainer.status import write_completed, write_failed, write_running
from trainer.tokenizer import load_training_tokenizer
from trainer.tracking import TrackersCallback
from trainer.training import RankZeroTrainer
from trainer.training_arguments import build_training_arguments, to_training_arguments
from trainer.weights import write_weights
from trainer.world import World, read_world


def run(config_path: Path, resume: str = AUTO) -> None:
    """Train as the config says, to the files in its run directory.

    `resume`: `auto` (go on from the newest valid checkpoint there), `never`, or a checkpoint.
    """
    config = load_config(config_path)
    world = read_world()
    directory = RunDirectory(Path(config.output_dir))
    before: dict[str, Any] = {}
    if world.is_rank_zero:
        directory.claim(resume=resume)
        before = directory.read_status()
        write_running(directory)
    session = Session(config, world, directory, resume)
    try:
        if world.is_rank_zero:
            check_run(config, resume)
            check_publication(config)
        session.run()
        # The session is gone, and with it the memory of training.
        if world.is_rank_zero and config.merge.after_training and config.lora.enabled:
            session.console.print("merging the adapter into its base model")
            merge_after_training(directory)
        if world.is_rank_zero and config.hub.repository is not None:
            session.console.print(f"published: {publish_run(directory, config)}")
    except BaseException as error:
        is_gone = world.is_rank_zero and not directory.path.is_dir()
        known = directory.gone() if is_gone else explained(error)
        if before.get("state") in ("completed", "interrupted") and not session.has_begun:
            write_json(directory.status, before)  # refused, and as it was
        else:
            write_failed(directory, world, known)
        if known is error:
            raise
        raise known from error
    if world.is_rank_zero:
        write_completed(directory)
        session.report()


class Session:
    """One run on this rank. Ranks: every method is called on all of them."""

    def __init__(
        self, config: Config, world: World, directory: RunDirectory, resume: str = NEVER
    ) -> None:
        self.config, self.world, self.directory, self.resume = config, world, directory, resume
        self.console = Console(
            stderr=True, quiet=not world.is_rank_zero, highlight=False, soft_wrap=True
        )
        self.has_begun = False
        """The run directory says what is trained now."""
        self.baseline: BaselineCallback | None = None
        self.best: BestModelCallback | None = None
        self.progress: ProgressCallback | None = None
        self.trackers: TrackersCallback | None = None

    def run(self) -> None:
        data = self.prepared_data()
        plan = self.batch_plan(data)
        contract = describe_run(self.config, data, plan)
        start = Start()
        if self.world.is_rank_zero:
            beginning = Beginning(self.config, self.directory, self.resume)
            found = beginning.find_start(contract)
            for note in found.notes:
                self.console.print(note, markup=False)
            self.has_begun = True
            start = beginning.take_place(found, contract, data, plan)
            # Before the model is loaded, and before the clock of the training runs.
            self.trackers = TrackersCallback(self.config, self.directory, start.step)
        trainer = self.build_trainer(data, plan)
        trainer.begin(start, Checkpointer(trainer, self.directory, contract, self.console))
        for callback in self.callbacks(trainer, trainer.plan):
            trainer.add_callback(callback)
        try:
            metrics = trainer.train_or_save()
        finally:
            if self.progress is not None:
                self.progress.close()
        try:
            results = self.finish(trainer, metrics)
        except AgreedStop as stop:
            raise Interrupted(
                f"{stop.what} after the last step, which is saved", fix=GO_ON
            ) from stop
        interruption.allow()
        self.leave_process_group()
        if self.world.is_rank_zero:
            results.write(self.directory.summary)
            self.console.print(results.text(self.directory))

    def prepared_data(self) -> PreparedData:
        """The data of the run; made now if it was not before."""
        data = prepared_for_rank(self.config, self.world, self.directory)
        self.console.print(counts_line(data))
        return data

    def batch_plan(self, data: PreparedData) -> BatchPlan:
        return make_batch_plan(
            self.config,
            num_examples=len(required_split(data, "train")),
            longest_tokens=longest_example(data),
            world_size=self.world.world_size,
        )

    def build_trainer(self, data: PreparedData, plan: BatchPlan) -> RankZeroTrainer:
        """Everything that must exist before the first step; joins the process group."""
        config = self.config
        device_type = choose_device().type
        if config.training.deepspeed_config is not None:
            self.console.print("starting DeepSpeed; the first time it may compile for 1-2 minutes")
        engine = deepspeed_arguments(
            config.training, self.world, device_type, quantization=config.model.quantization
        )
        precision = choose_precision(
            config.training.precision, device_type, native_bf16=probe_native_bf16(device_type)
        )
        # Before the model: this is where a rank learns its device, and ZeRO-3 how to load.
        arguments = build_training_arguments(
            to_training_arguments(
                config,
                plan,
                precision=precision.precision,
                device_type=device_type,
                directory=self.directory,
            )
            | engine
        )
        set_seed(config.seed)
        self.console.print("loading the model")
        built = build_model(config, device=arguments.device, precision=precision.precision)
        tokenizer = load_training_tokenizer(config)
        limits = check_model_fits(
            built.model,
            largest_token_id=data.largest_token_id,
            longest_tokens=longest_example(data),
        )
        tokens = tokens_of_run(plan, required_split(data, "train"), self.world.world_size)
        fast = make_fast(built.model, config.training, device_type, tokens)
        plan = dataclasses.replace(plan, can_pack=self.prove_packing(built, fast.loss))
        for line in (
            f"precision: {precision.precision} ({precision.reason})",
            *tokenizer.notes,
            *built.notes,
            fast.note,
            *limits,
            plan.line(self.world.world_size),
            parameter_line(built.model),
            memory_line(arguments.device),
        ):
            self.console.print(line)
        return RankZeroTrainer(
            config=config,
            plan=plan,
            data=data,
            world=self.world,
            loss_plan=fast.loss,
            model=built.model,
            args=arguments,
            processing_class=tokenizer.tokenizer,
        )

    def prove_packing(self, built: BuiltModel, loss_plan: LossPlan) -> bool:
        """Whether several examples may share a row: measured on this model, before it trains."""
        if is_deepspeed_zero3_enabled():
            # A forward pass needs the engine, the engine needs the plan, and the plan this.
            self.console.print("packing: on (under ZeRO-3 the start-up proof is left out)")
            return True
        proof = packing_is_exact(
            built.model,
            built.model.get_input_embeddings().num_embeddings,
            precision=built.precision,
            passes_boundaries=loss_plan.passes_boundaries,
        )
        self.console.print(f"packing: {'on' if proof.exact else 'off'} ({proof.reason})")
        return proof.exact

    def callbacks(self, trainer: RankZeroTrainer, plan: BatchPlan) -> list[TrainerCallback]:
        """In the order they run: the cadence sets the epoch that the others read."""
        evaluation = self.config.evaluation
        has_validation = trainer.data.split("validation") is not None
        callbacks = [
            TakeUpCallback(trainer),
            CadenceCallback(self.config, plan, has_validation=has_validation),
        ]
        if self.world.is_rank_zero:
            assert self.trackers is not None
            callbacks.append(self.trackers)
            callbacks.append(MetricsCallback(self.directory.metrics))
            self.progress = ProgressCallback(self.console, plan.num_steps)
            callbacks.append(self.progress)
            callbacks.append(DiagnosticsCallback(trainer, self.directory, self.console))
        if has_validation:
            self.best = BestModelCallback()
            callbacks += [self.best, EarlyStoppingCallback(evaluation)]
        callbacks += answer_callbacks(trainer, self.config, self.directory)
        if ranks := self.config.lora.progressive_ranks:
            callbacks.append(ProgressiveRankCallback(trainer, ranks, self.directory))
        if evaluation.at_start:
            self.baseline = BaselineCallback(trainer)
            callbacks.append(self.baseline)
        return callbacks

    def finish(self, trainer: RankZeroTrainer, metrics: dict[str, float]) -> RunResults:
        """Take the best weights, measure the held-out splits, write the result."""
        step = trainer.state.global_step
        best_step = self.best.best_step if self.best else 0
        if best_step and best_step != step and self.config.evaluation.load_best:
            self.console.print(f"the best weights are those of step {best_step}")
            trainer.take_weights(self.directory.checkpoints / checkpoint_name(best_step), best_step)
            step = best_step
        after = trainer.held_out_losses()
        if self.config.lora.enabled:
            self.publish_adapter(step)
        else:
            write_weights(trainer, self.directory.model)
        return RunResults(
            before=self.baseline.losses if self.baseline else {},
            after=after,
            steps=trainer.state.global_step,
            examples=trainer.state.global_step * trainer.plan.global_batch_size,
            tokens=trainer.tokens_seen,
            training_seconds=metrics["train_runtime"],
            train_loss=metrics["train_loss"],
            best_step=best_step or None,
            stopped_early=trainer.state.global_step < trainer.plan.num_steps,
        )

    def publish_adapter(self, step: int) -> None:
        """Copy the adapter of a checkpoint, float32 as it was trained, to adapter/."""
        if self.world.is_rank_zero:
            publish(self.directory.checkpoints / checkpoint_name(step), self.directory.adapter)
            # Of the adapter before, if there was one; what is required of this one is read there.
            self.directory.summary.unlink(missing_ok=True)

    def report(self) -> None:
        """Write the report and show it in the trackers; a complete run stays so without one.

        Ranks: rank 0 only.
        """
        try:
            page, _ = write_report(self.directory.path)
        except EnvironmentProblem as problem:
            self.console.print(f"no report: {problem}", markup=False)
        else:
            self.console.print(f"report: {page}")
        if self.console.is_terminal:  # for a person; in a cluster other commands follow
            self.console.print(f"next: rankzero generate {shlex.quote(str(self.directory.path))}")
        if self.trackers is not None:
            self.trackers.finish()

    def leave_process_group(self) -> None:
        """What follows is rank 0's alone; the others must not wait for it."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
