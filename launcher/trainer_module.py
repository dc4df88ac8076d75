"""Verbs that are a trainer module's own: the same arguments, in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import click

from launcher.supervise import supervise

Option = str | int | bool | None


def make_command(
    python: str, module: str, positional: Sequence[str], options: Mapping[str, Option]
) -> list[str]:
    """Return the command line; options that are None or false are left out. PURE."""
    command = [python, "-m", module]
    for name, value in options.items():
        if value is True:
            command.append(f"--{name}")
        elif value is not None and value is not False:
            # One word, so that a value may begin with a dash.
            command.append(f"--{name}={value}")
    return [*command, "--", *positional]


def run_module(
    module: str,
    positional: Sequence[str],
    options: Mapping[str, Option],
    *,
    is_interactive: bool = False,
) -> int:
    """Run a trainer module to its end and return its exit code."""
    command = make_command(sys.executable, module, positional, options)
    if sys.stderr.isatty():  # some seconds pass before the module can say anything itself
        click.echo("loading libraries", err=True)
    return supervise(command, is_interactive=is_interactive, starts_deaf=True)
