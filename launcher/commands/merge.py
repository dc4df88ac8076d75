"""`rankzero merge`"""

from __future__ import annotations

import sys

import click

from launcher.trainer_module import run_module


@click.command()
@click.argument("target", metavar="RUN|ADAPTER")
@click.option("--base", metavar="MODEL", help="Base model. Default: the one the adapter names.")
@click.option("--output", metavar="FOLDER", help="Where to write. Default: merged/ in the run.")
@click.option("--trust-remote-code", is_flag=True, help="Run code the base model ships.")
def merge(target: str, base: str | None, output: str | None, trust_remote_code: bool) -> None:
    """Join an adapter and its base model into one model."""
    options = {"base": base, "output": output, "trust-remote-code": trust_remote_code}
    sys.exit(run_module("trainer.merge", [target], options))
