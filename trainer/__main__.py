"""`python -m trainer --config RUN.yaml`, also under torchrun, accelerate launch and deepspeed.

The `deepspeed` command may start this as a file and appends `--local_rank`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

if __package__ in (None, ""):  # started as a file: make the package importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from trainer.attempt import taking_part
from trainer.entry import importing, run_entry
from trainer.interruption import telling_requests
from trainer.world import read_world


@click.command()
@click.option("--config", "config_path", required=True, type=click.Path(path_type=Path))
@click.option(
    "--resume",
    default="auto",
    metavar="auto|never|PATH",
    help="Go on from the run's newest valid checkpoint (auto), or from one named here.",
)
@click.option("--local_rank", "--local-rank", type=int, hidden=True, expose_value=False)
def main(config_path: Path, resume: str) -> None:
    """Train on this rank. CONFIG is a run config or a run directory's resolved.json."""
    with importing():
        from trainer.main import run  # after run_entry has quietened the libraries

    run(config_path, resume)


def run_rank(argv: list[str]) -> None:
    """Train, and leave this rank's record in the launcher's attempt, if there is one."""
    with taking_part(read_world), telling_requests():
        main(argv, prog_name="trainer", standalone_mode=False)


if __name__ == "__main__":
    sys.exit(run_entry(run_rank))
