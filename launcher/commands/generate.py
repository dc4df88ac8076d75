"""`rankzero generate`"""

from __future__ import annotations

import sys

import click

from launcher.trainer_module import run_module


@click.command()
@click.argument("models", metavar="RUN|MODEL...", nargs=-1, required=True)
@click.option("--prompt", help="Question to answer. Without it: a chat.")
@click.option("--system", help="System prompt.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Longest answer in tokens.")
@click.option(
    "--precision",
    type=click.Choice(("auto", "fp32", "fp16", "bf16")),
    help="What to compute in. Default: auto, the fastest safe one here.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run code a model ships.")
@click.option("--json", "as_json", is_flag=True, help="Print answers as JSON on stdout.")
def generate(
    models: tuple[str, ...], prompt: str | None, as_json: bool, **options: str | int | bool | None
) -> None:
    """Let a run, a model or several answer."""
    others = {name.replace("_", "-"): value for name, value in options.items()}
    words = {"prompt": prompt, **others, "json": as_json}
    sys.exit(run_module("trainer.generation", models, words, is_interactive=prompt is None))
