"""`rankzero train`"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from launcher.run import show_run, start_run
from trainer.config import load_config


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, such as training.learning_rate=1e-4. May be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Print the commands; start and write nothing.")
def train(config: Path, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Prepare the data and train."""
    resolved = load_config(config, overrides)
    if dry_run:
        click.echo(show_run(resolved))
    else:
        sys.exit(start_run(resolved, config))
