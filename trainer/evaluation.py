"""Measure a finished run: `python -m trainer.evaluation RUN [--split test] [--json]`."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import click

from trainer.config import TrackingConfig, load_config
from trainer.data.sources import ROLES, Role
from trainer.entry import ending_at_once, run_entry
from trainer.errors import ConfigError
from trainer.run_directory import RunDirectory


def evaluate_run(run: Path, split: Role) -> dict[str, Any]:
    """Loss of a run's final weights on one of its splits, computed as during training.

    Raises: ConfigError when RUN is not a finished run; DataError when it has no such split.
    """
    with ending_at_once():
        from trainer.main import Session
        from trainer.prepared_data import prepared_by_run, required_split
        from trainer.weights import load_weights
        from trainer.world import World

    directory = RunDirectory(run)
    weights = next((path for path in (directory.adapter, directory.model) if path.is_dir()), None)
    if not directory.resolved_config.is_file() or weights is None:
        raise ConfigError(
            f"{run} is not a finished run",
            rule="a finished run holds resolved.json and adapter/ or model/",
            fix="give the output_dir of a run that has ended",
        )
    config = load_config(directory.resolved_config)
    data = prepared_by_run(config, directory)
    required_split(data, split)
    # Evaluating must not write into the run's trackers.
    quiet = config.model_copy(update={"tracking": TrackingConfig(to=())})
    session = Session(quiet, World(), directory)
    trainer = session.build_trainer(data, session.batch_plan(data))
    load_weights(trainer, weights)
    trainer.prepare_for_evaluation()
    metrics = trainer.evaluate(split, metric_key_prefix=split)
    loss = metrics[f"{split}_loss"]
    return {
        "run": str(run),
        "split": split,
        "examples": len(required_split(data, split)),
        "label_tokens": metrics[f"{split}_labels"],
        "loss": loss,
        "perplexity": math.exp(loss),
    }


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(ROLES), default="test", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def main(run: Path, split: Role, as_json: bool) -> None:
    """Print the loss of RUN's final weights on one of its splits."""
    result = evaluate_run(run, split)
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(
        f"{split} loss {result['loss']:.4f}, perplexity {result['perplexity']:.3f} "
        f"({result['examples']} examples, {result['label_tokens']} label tokens)"
    )


if __name__ == "__main__":
    sys.exit(run_entry(lambda argv: main(argv, prog_name="evaluate", standalone_mode=False)))
