"""Options that several verbs share."""

from __future__ import annotations

import click

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, such as training.learning_rate=1e-4. May be repeated.",
)
nodes_option = click.option(
    "--nodes", type=click.IntRange(min=1), help="Machines; default the profile's."
)
