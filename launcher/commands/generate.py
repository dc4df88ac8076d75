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
@click.option("--trust-remote-code", is_flag=True, help="Run code a model ships.")
@click.option("--json", "as_json", is_flag=True, help="Print answers as JSON on stdout.")
def generate(
    models: tuple[str, ...],
    prompt: str | None,
    system: str | None,
    max_new_tokens: int | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Let a run, a model or several answer."""
    options = {
        "prompt": prompt,
        "system": system,
        "max-new-tokens": max_new_tokens,
        "trust-remote-code": trust_remote_code,
        "json": as_json,
    }
    is_chat = prompt is None
    sys.exit(run_module("trainer.generation", models, options, is_interactive=is_chat))
