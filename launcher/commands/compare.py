"""`rankzero compare`"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), help="Write a page as well.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON on stdout.")
def compare(runs: tuple[Path, ...], html: Path | None, as_json: bool) -> None:
    """Show runs side by side: settings that differ, losses, rates, memory."""
    from launcher.compare import compare as compare_records
    from launcher.compare_text import to_text
    from trainer.report.read import read_run

    records = [read_run(run) for run in runs]
    comparison = compare_records(records)
    if html is not None:
        from trainer.report.page import write_comparison

        write_comparison(records, html)
        click.echo(f"wrote {html}", err=True)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(comparison), indent=2, ensure_ascii=False))
    else:
        click.echo(to_text(comparison))
