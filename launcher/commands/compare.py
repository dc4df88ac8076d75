"""`rankzero compare`"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON on stdout.")
def compare(runs: tuple[Path, ...], as_json: bool) -> None:
    """Show runs side by side: settings that differ, losses, rates, memory."""
    from launcher.compare import compare as compare_records
    from launcher.compare import read_run
    from launcher.compare_text import to_text

    comparison = compare_records([read_run(run) for run in runs])
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(comparison), indent=2, ensure_ascii=False))
    else:
        click.echo(to_text(comparison))
