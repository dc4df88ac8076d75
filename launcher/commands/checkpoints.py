"""`rankzero checkpoints`"""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Compare every file with its size and SHA-256.")
@click.option("--prune", is_flag=True, help="Remove what training itself would not keep.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON on stdout.")
def checkpoints(run: Path, verify: bool, prune: bool, as_json: bool) -> None:
    """List a run's checkpoints, verify them, remove those it no longer needs."""
    from launcher.checkpoints_table import read_table
    from launcher.prune import prune_run

    pruned = prune_run(run) if prune else None
    table = read_table(run, is_verified=verify)
    if as_json:
        removed = {} if pruned is None else {"removed_steps": pruned.steps}
        click.echo(json.dumps({**table.to_json(), **removed}, indent=2))
    else:
        click.echo(table.to_text())
        if pruned is not None:
            steps = ", ".join(str(step) for step in pruned.steps)
            click.echo(f"removed: {steps or 'nothing'}")
    table.refuse_broken()
