"""Saving while training: what blocks the step, what does not, and what is kept afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from trainer.checkpoints import capture
from trainer.checkpoints.adapter import adapter_names
from trainer.checkpoints.commit import begin, commit, discard, explaining_writes, prune
from trainer.checkpoints.contract import FILE_NAME as CONTRACT
from trainer.checkpoints.folder import Checkpoint
from trainer.checkpoints.manifest import FILE_NAME as MANIFEST
from trainer.checkpoints.state import FILE_NAME as STATE
from trainer.checkpoints.state import RunState, write_state
from trainer.checkpoints.writer import BackgroundWriter
from trainer.errors import EnvironmentProblem, RankZeroError
from trainer.run_directory import RunDirectory, write_json
from trainer.safetensors_file import write_safetensors
from trainer.weights import replace_folder, write_weights

if TYPE_CHECKING:
    from trainer.training import RankZeroTrainer

SHARDED = "sharded"
"""Folder, and DeepSpeed's tag, of what every rank writes for itself."""
_OF_TRAINING = (CONTRACT, MANIFEST, STATE, capture.OPTIMIZER, capture.RANKS, SHARDED)
_MIB = 1 << 20


def publish(checkpoint: Path, target: Path) -> None:
    """Copy the weights and tokenizer of a checkpoint to a folder of their own, at once."""
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(checkpoint, temporary, ignore=shutil.ignore_patterns(*_OF_TRAINING))
    replace_folder(temporary, target)


class Checkpointer:
    """Saves one run. Ranks: every rank has one; rank 0 alone commits."""

    def __init__(
        self,
        trainer: RankZeroTrainer,
        directory: RunDirectory,
        contract: Mapping[str, Any],
        console: Console,
    ) -> None:
        self.trainer, self.directory, self.contract = trainer, directory, contract
        self.console = console
        self.last_step: int | None = None
        self._writer = BackgroundWriter()
        self._tokenizer = capture.TokenizerFiles(trainer.processing_class)

    def save(self) -> None:
        """Save the state after the last completed step.

        An adapter is copied, then written while training goes on; an error in writing comes out of
        a later call, at the next step at the latest. Ranks: collective.
        """
        started = time.perf_counter()
        self.check()
        trainer = self.trainer
        state = trainer.run_state("portable" if trainer.is_portable else "sharded")
        is_lora = trainer.config.lora.enabled
        snapshot = (
            capture.capture_adapter(
                trainer, self._adapter_names, with_optimizer=trainer.is_portable
            )
            if is_lora
            else None
        )
        ranks = capture.gather_ranks(trainer)

        def fill(folder: Path) -> None:
            if snapshot is not None:
                capture.write_adapter(folder, snapshot)
            elif trainer.is_portable:
                capture.write_model(folder, trainer)
            write_safetensors(folder / capture.RANKS, ranks)

        self.last_step = state.step
        if trainer.is_portable and is_lora:
            if trainer.world.is_rank_zero:
                job = partial(self._write, state, fill, started, time.perf_counter())
                self._writer.submit(job)
        elif trainer.is_portable:
            if trainer.world.is_rank_zero:
                self._write(state, fill, started)
            trainer.host.wait_for_all()
        else:
            self._save_sharded(state, fill, started)

    @cached_property
    def _adapter_names(self) -> dict[str, str]:
        return adapter_names(self.trainer.model)  # walks through all modules: once is enough

    def check(self) -> None:
        """Raise the error of a save that went wrong meanwhile; cheap, for every step."""
        self._writer.check()

    def finish(self) -> None:
        """Wait until rank 0 has committed. Ranks: collective."""
        self._writer.wait()
        self.trainer.host.wait_for_all()

    def settle(self) -> None:
        """Let a write in flight come to its end; what stopped training is told, not its error."""
        with contextlib.suppress(OSError, RankZeroError):
            self._writer.wait()

    def _write(
        self,
        state: RunState,
        fill: Callable[[Path], None],
        started: float,
        unblocked: float | None = None,
        temporary: Path | None = None,
    ) -> None:
        """Write, commit, tidy and tell. Ranks: rank 0, possibly in the writer's thread."""
        self._require_run()
        folder = self.directory.checkpoints
        temporary = temporary or begin(folder, state.step)
        try:
            with explaining_writes(folder):
                fill(temporary)
                self._tokenizer.write(temporary)
                write_state(temporary, state)
                write_json(temporary / CONTRACT, self.contract)
            committed = commit(temporary, folder, state.step)
        except BaseException:
            discard(temporary)
            raise
        if state.best_step == state.step and self._holds_weights(state):
            publish(committed.path, self.directory.best_model)
        best = () if state.best_step is None else (state.best_step,)
        keep_last = self.trainer.config.checkpoint.keep_last
        pruned = prune(folder, keep_last=keep_last, keep=best, newest=committed)
        for problem in pruned.problems:
            self.console.print(f"warning: {problem}", markup=False)
        self._tell(committed, started, unblocked)

    def _save_sharded(self, state: RunState, fill: Callable[[Path], None], started: float) -> None:
        """Let every rank write its part with DeepSpeed, under the same commit."""
        trainer, is_writer = self.trainer, self.trainer.world.is_rank_zero
        temporary: Path | None = None
        if is_writer:
            self._require_run()
            temporary = begin(self.directory.checkpoints, state.step)
        temporary = trainer.host.from_rank_zero(temporary)
        assert temporary is not None
        try:
            with explaining_writes(self.directory.checkpoints):
                trainer.model_wrapped.save_checkpoint(
                    str(temporary),
                    tag=SHARDED,
                    exclude_frozen_parameters=trainer.config.lora.enabled,
                )
        except BaseException:
            discard(temporary)
            raise
        trainer.host.wait_for_all()
        if is_writer:
            self._require_shards(temporary)
            self._write(state, fill, started, temporary=temporary)
        trainer.host.wait_for_all()
        if state.best_step == state.step and not self._holds_weights(state):
            write_weights(trainer, self.directory.best_model)

    def _holds_weights(self, state: RunState) -> bool:
        return state.holds_weights(is_lora=self.trainer.config.lora.enabled)

    def _require_run(self) -> None:
        """Refuse to write into a run that was removed, or that another process has taken over.

        Raises: EnvironmentProblem.
        """
        status = self.directory.read_status()
        owner = (status.get("pid"), status.get("host"))
        is_taken = status.get("state") == "running" and owner != (os.getpid(), socket.gethostname())
        if is_taken or not status:
            what = "has been taken over by another process" if status else "is gone"
            raise EnvironmentProblem(
                f"the run directory {self.directory.path} {what}; step "
                f"{self.trainer.state.global_step} was not saved",
                rule="one process at a time writes a run, into the folder it began in",
                fix="let one launcher at a time work on it, and leave the folder in place",
            )

    def _require_shards(self, temporary: Path) -> None:
        """Raises: EnvironmentProblem when the parts of other nodes are not there."""
        world_size = self.trainer.world.world_size
        found = len(list((temporary / SHARDED).glob("*_optim_states.pt")))
        if found < world_size:
            discard(temporary)
            raise EnvironmentProblem(
                f"{self.directory.path} holds the parts of {found} of {world_size} ranks",
                rule="full fine-tuning under DeepSpeed saves from every rank into one folder",
                fix="put output_dir on a file system that all nodes share",
            )

    def _tell(self, committed: Checkpoint, started: float, unblocked: float | None) -> None:
        now = time.perf_counter()
        seconds, blocked = now - started, (unblocked or now) - started
        size = sum(file.stat().st_size for file in committed.path.rglob("*") if file.is_file())
        saved = {"seconds": seconds, "blocked_seconds": blocked, "bytes": size}
        write_json(self.directory.last_save, {"step": committed.step, **saved})
        self.console.print(
            f"saved {committed.path.name}: {size / _MIB:,.1f} MiB in {seconds:.2f} s, "
            f"training waited {blocked:.2f} s"
        )
