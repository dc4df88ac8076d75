"""`rankzero plan`"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from launcher.commands.options import nodes_option, set_option
from launcher.plan_table import print_plan
from launcher.planning import Target, plan_run

_PIPE_WIDTH = 160


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--profile", default="auto", metavar="auto|NAME|FILE", help="Hardware to plan for (auto: this)."
)
@nodes_option
@set_option
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON on stdout.")
def plan(
    config: Path, profile: str, nodes: int | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Show how a run would be carried out, what it takes, and whether it fits."""
    planned = plan_run(config, overrides, Target(profile=profile, nodes=nodes))
    if as_json:
        click.echo(planned.plan.model_dump_json(indent=2))
    else:
        # A file or a pipe has no width: nothing is folded there.
        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        console = Console(highlight=False, width=width)
        print_plan(console, planned.plan, planned.reasons)
