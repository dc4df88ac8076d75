"""`rankzero schema`"""

from __future__ import annotations

import json

import click

from trainer.config import json_schema


@click.command()
def schema() -> None:
    """Print the JSON Schema of the config."""
    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
