"""A Trainer that begins in the middle, and stops anywhere with nothing lost.

The state it saves is always that after the last completed step: a step that a request to stop cuts
short leaves no trace, and is done again by the next attempt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import Trainer

from trainer.callbacks.stateful import StatefulCallback
from trainer.checkpoints.contract import differences
from trainer.checkpoints.generators import GeneratorStates, generator_states
from trainer.checkpoints.restore import (
    LOSS_SUM,
    restore_ranks,
    restore_training,
    restore_weights,
)
from trainer.checkpoints.resume import Start
from trainer.checkpoints.state import RunState
from trainer.checkpoints.zero import keeps_whole_tensors
from trainer.errors import ConfigError, Interrupted
from trainer.host_group import AgreedStop, HostGroup
from trainer.loss_scale import get_loss_scale

if TYPE_CHECKING:
    from trainer.checkpoints.saver import Checkpointer
    from trainer.config import Config
    from trainer.schedule import BatchPlan
    from trainer.world import World


GO_ON = "run the same command again to go on"


class ResumableTrainer(Trainer):  # type: ignore[misc]
    """Trainer with a place to start from and a checkpointer to save with."""

    config: Config
    plan: BatchPlan
    world: World

    def __init__(self, **arguments: Any) -> None:
        self.start = Start()
        self.checkpointer: Checkpointer | None = None
        self.tokens_seen = 0  # by all ranks together, in all attempts
        self._started, self._seconds_stopped = time.perf_counter(), 0.0
        self._seconds_before = 0.0  # of earlier attempts
        self._evaluation_pending = False
        self._taken_step: int | None = None
        self._generators: GeneratorStates | None = None  # at the start of an open step
        super().__init__(**arguments)
        self.host = HostGroup(self.world)

    def begin(self, start: Start, checkpointer: Checkpointer) -> None:
        """Take rank 0's word for where to start. Ranks: collective.

        Raises: ConfigError when this rank would train another run than rank 0.
        """
        self.checkpointer = checkpointer
        self.start = self.host.from_rank_zero(start)
        differing = differences(
            self.host.from_rank_zero(checkpointer.contract), checkpointer.contract
        )
        if differing:
            raise ConfigError(
                f"rank {self.world.rank} has another run than rank 0 (then): {differing[0]}",
                rule="every rank trains with the same config, data and base model",
                fix="give every node the same files",
            )

    def train_or_save(self) -> dict[str, float]:
        """Train to the end and save it, or to an agreed stop and save that. Ranks: collective.

        Raises: Interrupted once the state is saved.
        """
        assert self.checkpointer is not None
        is_urgent = False
        try:
            metrics: dict[str, float] = self.train().metrics
            self._save_unless_saved()
            self.checkpointer.finish()
        except AgreedStop as stop:
            raise self._saved(stop) from None
        except Interrupted:
            is_urgent = True  # a second request
            raise
        finally:
            if not is_urgent:
                self.checkpointer.settle()
        return metrics

    def _saved(self, stop: AgreedStop) -> Interrupted:
        """Save, and return what to tell."""
        assert self.checkpointer is not None
        step = self.state.global_step
        if step == 0:
            return Interrupted(f"{stop.what} before the first step was complete", fix=GO_ON)
        started = time.perf_counter()
        self._save_unless_saved()
        self.checkpointer.finish()
        seconds = time.perf_counter() - started
        return Interrupted(
            f"{stop.what} after step {step} of {self.plan.num_steps}; saved in {seconds:.1f} s",
            fix=GO_ON,
        )

    def _save_unless_saved(self) -> None:
        assert self.checkpointer is not None
        if self.state.global_step not in (self.checkpointer.last_step, self.start.step):
            self.save()

    # -- beginning ----------------------------------------------------------------------------

    def _init_training_state(self, *arguments: Any, **named: Any) -> tuple[int, int]:
        super()._init_training_state(*arguments, **named)
        if self.start.state is not None:
            self.state.global_step, self.state.epoch = self.start.step, self.start.state.epoch
        # The data loader begins at the step by itself; Trainer has nothing to skip.
        return 0, 0

    def _prepare_for_training(self, *arguments: Any, **named: Any) -> tuple[Any, Any]:
        prepared = super()._prepare_for_training(*arguments, **named)
        if self.start.checkpoint is not None and self.start.state is not None:
            restore_training(self, self.start.checkpoint, self.start.state)
        return prepared  # type: ignore[no-any-return]

    def take_up(self) -> None:
        """Take counts, callbacks and random generators from the start, when training begins.

        Ranks: collective.
        """
        state, checkpoint = self.start.state, self.start.checkpoint
        if state is None or checkpoint is None:
            return
        self.tokens_seen = state.tokens
        self._seconds_before = state.training_seconds
        self._total_loss_scalar = state.loss_total
        self._globalstep_last_logged = state.last_logged_step
        self._initial_global_step = 0  # rates and means are of the whole run
        self._evaluation_pending = state.evaluation_pending
        for name, callback in self._stateful_callbacks():
            if name in state.callbacks:
                callback.load_state_dict(state.callbacks[name])
        loss_sum = restore_ranks(self, checkpoint, state)
        self._tr_loss = loss_sum.to(self.args.device)

    def _run_epoch(self, *arguments: Any, **named: Any) -> None:
        if self._evaluation_pending:
            self._evaluate(None, None)
            self.save()  # what the evaluation changed, and whether a new best was found
        if self.control.should_training_stop or self.state.global_step >= self.plan.num_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*arguments, **named)

    # -- steps --------------------------------------------------------------------------------

    def open_step(self) -> None:
        """Remember what a step changes before it is complete: the random generators."""
        if self.checkpointer is not None:
            self.checkpointer.check()
        self._generators = generator_states()

    def close_step(self) -> None:
        """The optimizer is about to update the weights: no stop between here and there."""
        self._generators = None

    def _evaluate(self, *arguments: Any, **named: Any) -> Any:
        self._evaluation_pending = True
        metrics = super()._evaluate(*arguments, **named)
        self._evaluation_pending = False
        return metrics

    # -- saving -------------------------------------------------------------------------------

    def save(self) -> None:
        """Save the state after the last completed step. Ranks: collective."""
        assert self.checkpointer is not None
        self.checkpointer.save()

    def take_weights(self, checkpoint: Path, step: int) -> None:
        """Put the weights of a checkpoint of this run into the model. Ranks: collective."""
        restore_weights(self, checkpoint, is_sharded=not self.is_portable)
        self._taken_step = step

    @property
    def weights_step(self) -> int:
        """The step whose weights the model has: the newest, until others are taken."""
        return self.state.global_step if self._taken_step is None else self._taken_step

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.save()

    def run_state(self, kind: Literal["portable", "sharded"]) -> RunState:
        """Return where the run stands. Ranks: the answer is meant for rank 0."""
        step = self.state.global_step
        callbacks = {name: callback.state_dict() for name, callback in self._stateful_callbacks()}
        return RunState(
            kind=kind,
            step=step,
            epoch=self.plan.epochs_at(step),
            tokens=self.tokens_seen,
            training_seconds=self.training_seconds,
            loss_total=self._total_loss_scalar,
            last_logged_step=self._globalstep_last_logged,
            scheduler_steps=self.lr_scheduler.last_epoch,
            loss_scale=get_loss_scale(self),
            evaluation_pending=self._evaluation_pending,
            best_step=callbacks.get("BestModelCallback", {}).get("best_step") or None,
            callbacks=callbacks,
            world_size=self.world.world_size,
            engine=self.engine_name,
            precision=self.precision_name,
            saved=time.time(),
        )

    def _stateful_callbacks(self) -> Iterator[tuple[str, StatefulCallback]]:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, StatefulCallback):
                yield type(callback).__name__, callback

    def own_tensors(self) -> dict[str, torch.Tensor]:
        """Return what belongs to this rank alone."""
        generators = self._generators or generator_states()
        return {**generators.to_tensors(), LOSS_SUM: self._tr_loss.detach().cpu()}

    @property
    def zero_optimizer(self) -> Any:
        """DeepSpeed's optimizer; None without DeepSpeed."""
        return self.model_wrapped.optimizer if self.is_deepspeed_enabled else None

    @property
    def is_portable(self) -> bool:
        """Whether the optimizer's state can be saved whole, for any hardware."""
        if not self.is_deepspeed_enabled:
            return True
        return self.config.lora.enabled and keeps_whole_tensors(self.zero_optimizer)

    @property
    def engine_name(self) -> str:
        if self.is_deepspeed_enabled:
            return f"zero{self.model_wrapped.zero_optimization_stage()}"
        return "ddp" if self.world.world_size > 1 else "one process"

    @property
    def precision_name(self) -> str:
        return "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "fp32"

    @property
    def training_seconds(self) -> float:
        """Seconds spent on steps, in all attempts, without evaluations and checkpoints."""
        now = time.perf_counter()
        return self._seconds_before + now - self._started - self._seconds_stopped
