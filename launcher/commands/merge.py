"""`rankzero merge`"""

from __future__ import annotations

import sys

import click

from launcher.trainer_module import run_module


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="RUN|ADAPTER...")
@click.option("--base", metavar="MODEL", help="Base model. Default: the one the adapter names.")
@click.option("--output", metavar="FOLDER", help="Where to write. Default: merged/ in the run.")
@click.option(
    "--base-precision",
    type=click.Choice(("original", "dequantized", "auto")),
    help="After training in 4 or 8 bits: merge into the base as it is stored (original), into what "
    "training read (dequantized), or into the closer one (auto). Default: original.",
)
@click.option(
    "--quantization",
    type=click.Choice(("nf4", "fp4", "int8")),
    help="How training stored the base. Default: as the run says.",
)
@click.option(
    "--dtype",
    type=click.Choice(("float32", "bfloat16", "float16")),
    help="Type of the merged weights. Default: that of the base.",
)
@click.option("--replace", is_flag=True, help="Replace an earlier merge there.")
@click.option("--ignore-requirements", is_flag=True, help="Merge although merge.require says no.")
@click.option("--push-to-hub", metavar="OWNER/NAME", help="Publish the merged model, and its card.")
@click.option("--private", is_flag=True, help="Make the repository on the Hub a private one.")
@click.option("--trust-remote-code", is_flag=True, help="Run code the base model ships.")
def merge(targets: tuple[str, ...], **options: str | bool | None) -> None:
    """Join an adapter and its base model into one model.

    Several adapters go in one after another, in the order given.
    """
    words = {name.replace("_", "-"): value for name, value in options.items()}
    sys.exit(run_module("trainer.merge", targets, words))
