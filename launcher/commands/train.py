"""`rankzero train`"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from launcher.commands.options import nodes_option, set_option
from launcher.dry_run import show_run
from launcher.engines.launch import EngineName
from launcher.plan_table import render_summary
from launcher.planning import Target, plan_run, what_needs_less
from launcher.run import start_run
from launcher.run_directory import enter, read_past, resume_choice
from launcher.start import Start
from trainer.config import load_config
from trainer.errors import OutOfMemory
from trainer.run_directory import RunDirectory


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
@click.option(
    "--resume",
    default="auto",
    metavar="auto|never|PATH",
    help="Go on with the run in output_dir, if there is one; never; or from a checkpoint or run.",
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
    resume: str,
    nodes: int | None,
    node_rank: int,
    rendezvous: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Plan, prepare the data and train."""
    start = Start(node_rank, rendezvous, resume_choice(resume))
    run = RunDirectory(Path(load_config(config, overrides).output_dir).absolute())
    if node_rank == 0:  # before any time is spent on planning
        enter(run, start.resume, is_waiting=not dry_run)
    name: EngineName | None = None if engine == "auto" else engine  # type: ignore[assignment]
    target = Target(profile, name, processes, nodes)
    planned = plan_run(config, overrides, target, read_past(run, start.resume))
    summary = render_summary(planned.plan, planned.reasons)
    Console(stderr=True, highlight=False, soft_wrap=True).print(summary)
    if dry_run:
        click.echo(show_run(planned, start))
        return
    try:
        sys.exit(start_run(planned, config, start))
    except OutOfMemory:
        click.echo(what_needs_less(planned), err=True)
        raise
