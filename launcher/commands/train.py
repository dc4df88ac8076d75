"""`rankzero train`"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from launcher.commands.options import nodes_option, set_option
from launcher.engines.launch import EngineName
from launcher.plan_table import render_summary
from launcher.planning import Target, plan_run
from launcher.run import Node, require_free_directory, show_run, start_run
from trainer.config import load_config


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--profile", default="auto", metavar="auto|NAME|FILE", help="Hardware (auto: what is here)."
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "python", "torchrun", "accelerate", "deepspeed"]),
    default="auto",
    help="What starts the ranks.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Per node; default the GPUs of the profile, 1 on a CPU.",
)
@nodes_option
@click.option("--node-rank", type=click.IntRange(min=0), default=0, help="Which of them this is.")
@click.option("--rendezvous", metavar="HOST:PORT", help="Where nodes meet: an address of node 0.")
@set_option
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the commands of each engine and start nothing; files they name go to RUN/dry-run.",
)
def train(
    config: Path,
    profile: str,
    engine: str,
    processes: int | None,
    nodes: int | None,
    node_rank: int,
    rendezvous: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Plan, prepare the data and train."""
    require_free_directory(load_config(config, overrides), node_rank)
    name: EngineName | None = None if engine == "auto" else engine  # type: ignore[assignment]
    planned = plan_run(config, overrides, Target(profile, name, processes, nodes))
    node = Node(node_rank, rendezvous)
    summary = render_summary(planned.plan, planned.reasons)
    Console(stderr=True, highlight=False, soft_wrap=True).print(summary)
    if dry_run:
        click.echo(show_run(planned, node))
    else:
        sys.exit(start_run(planned, config, node))
