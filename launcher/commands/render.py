"""`rankzero render`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from launcher.commands.cluster_options import RunOptions, run_options
from launcher.kubernetes.manifests.folder import write_manifests
from launcher.kubernetes.manifests.render import to_yaml


@click.command()
@run_options
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the manifests.",
)
def render(output: Path, **options: Any) -> None:
    """Write the Kubernetes manifests of a run; no cluster is needed."""
    rendered = RunOptions(**options).render()
    texts = {name: to_yaml(content) for name, content in rendered.manifests.items()}
    written = write_manifests(output, texts)
    for note in rendered.notes:
        click.echo(note, err=True)
    click.echo("\n".join(str(path) for path in written))
