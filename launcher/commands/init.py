"""`rankzero init`"""

from __future__ import annotations

from pathlib import Path

import click

from launcher.starter import write_starter


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("run.yaml"))
def init(path: Path) -> None:
    """Write a commented config to start from.

    PATH is run.yaml unless given. An existing file is never overwritten.
    """
    write_starter(path)
    click.echo(f"wrote {path}; next: rankzero train {path}")
