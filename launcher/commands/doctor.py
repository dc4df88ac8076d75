"""`rankzero doctor`"""

from __future__ import annotations

import dataclasses
import json

import click

from trainer.errors import EnvironmentProblem


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON on stdout.")
def doctor(as_json: bool) -> None:
    """Show what works on this machine: versions, GPUs, compiled parts, memory, disk."""
    try:
        from launcher.doctor.diagnosis import diagnose
        from launcher.doctor.facts import collect
        from launcher.doctor.text import refuse_problems, to_text
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"{error.name} is not installed",
            rule="looking at a machine needs the small libraries this project depends on",
            fix="install the project with its dependencies: pip install rankzero",
        ) from None

    click.echo("trying what a run needs; this takes some seconds", err=True)
    findings = diagnose(collect())
    if as_json:
        values = [dataclasses.asdict(finding) for finding in findings]
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
    else:
        click.echo(to_text(findings))
    refuse_problems(findings)
