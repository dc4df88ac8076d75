"""`rankzero profiles`"""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print profiles as JSON on stdout.")
def profiles(as_json: bool) -> None:
    """List the hardware profiles; the one this machine matches is marked."""
    from launcher.profiles_table import read_table

    table = read_table()
    if as_json:
        click.echo(json.dumps(table.to_json(), indent=2, ensure_ascii=False))
    else:
        click.echo(table.to_text())
