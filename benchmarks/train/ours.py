"""The seam to RankZero: its trainer, as a run builds it from a resolved config."""

from __future__ import annotations

from pathlib import Path

from benchmarks.train.setup import Setup
from benchmarks.train.ways import Choice, Way
from trainer.config import load_config
from trainer.main import Session
from trainer.run_directory import RunDirectory
from trainer.training import RankZeroTrainer
from trainer.world import World


def build(setup: Setup, _way: Way, _choice: Choice | None, *, is_step: bool) -> RankZeroTrainer:
    """Build data, model, adapters and trainer. `is_step`: for the one step that is compared."""
    config = load_config(Path(setup.step_config if is_step else setup.config))
    session = Session(config, World(), RunDirectory(Path(config.output_dir)))
    data = session.prepared_data()
    return session.build_trainer(data, session.batch_plan(data))


def steps_per_round(setup: Setup, _trainer: RankZeroTrainer) -> int:
    return setup.rows.steps_per_round


def useful_tokens(trainer: RankZeroTrainer, rounds: int) -> int:
    """Return the tokens of a round, from the trainer's own count so far."""
    return trainer.tokens_seen // rounds
