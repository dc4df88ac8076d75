"""Where a run begins or goes on, and what its directory says from then on.

Ranks: rank 0 only, before it meets the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.checkpoints.commit import clear_leftovers
from trainer.checkpoints.folder import checkpoint_name
from trainer.checkpoints.resume import Start, bring_in, find_start
from trainer.checkpoints.saver import publish
from trainer.config import Config
from trainer.config_paths import with_absolute_paths
from trainer.data.store import PreparedData
from trainer.prepare import write_report
from trainer.run_directory import RunDirectory, keep_lines, write_json
from trainer.schedule import BatchPlan, with_fixed_batch
from trainer.weights import clear_temporaries


@dataclass(frozen=True)
class Beginning:
    """One attempt at a run. `resume`: `auto`, `never`, or the path of a checkpoint."""

    config: Config
    directory: RunDirectory
    resume: str

    def find_start(self, contract: dict[str, Any]) -> Start:
        """Choose the checkpoint to go on from, if there is one; nothing of the run is changed yet.

        Raises: ConfigError when this is another run; EnvironmentProblem when nothing is valid.
        """
        notes = tuple(clear_leftovers(self.directory.checkpoints))
        allow_changes = self.config.checkpoint.allow_changes
        found = find_start(self.resume, self.directory, contract, allow_changes=allow_changes)
        return Start(found.checkpoint, found.state, notes + found.notes)

    def take_place(
        self, found: Start, contract: dict[str, Any], data: PreparedData, plan: BatchPlan
    ) -> Start:
        """Make the run directory say what is trained from the start on; steps after it are gone."""
        start = bring_in(found, self.directory)
        keep_lines(self.directory.metrics, start.logged)
        for path in (self.directory.samples, self.directory.safety, self.directory.advice):
            keep_lines(path, start.measured)
        write_json(self.directory.contract, contract)
        resolved = with_absolute_paths(with_fixed_batch(self.config, plan))
        write_json(self.directory.resolved_config, resolved.model_dump(mode="json"))
        write_report(self.config, data.entry)
        clear_temporaries(self.directory.path)
        self._show_best(start)
        return start

    def _show_best(self, start: Start) -> None:
        """Bring best_model/ back to what was the best at `start`: later steps are done again."""
        state = start.state
        if state is not None and not state.holds_weights(is_lora=self.config.lora.enabled):
            return
        if state is not None and state.best_step is not None:
            best = self.directory.checkpoints / checkpoint_name(state.best_step)
            publish(best, self.directory.best_model)
