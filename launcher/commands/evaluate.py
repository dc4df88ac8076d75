"""`rankzero evaluate`"""

from __future__ import annotations

import sys

import click

from launcher.trainer_module import run_module


@click.command()
@click.argument("run")
@click.option(
    "--split",
    type=click.Choice(["test", "validation", "train"]),
    default="test",
    show_default=True,
    help="Which part of the data.",
)
@click.option("--json", "as_json", is_flag=True, help="Print results as JSON on stdout.")
def evaluate(run: str, split: str, as_json: bool) -> None:
    """Measure a finished run on a split of its data."""
    sys.exit(run_module("trainer.evaluation", [run], {"split": split, "json": as_json}))
