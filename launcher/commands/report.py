"""`rankzero report`"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write a run's report.html and training_curves.png, finished or not."""
    from trainer.report.page import write_report

    for path in write_report(run):
        click.echo(path)
