"""`rankzero render`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

import click

from launcher.commands.options import nodes_option, set_option
from launcher.kubernetes.cluster import DEFAULT_IMAGE, Cluster, Kind, Role
from launcher.kubernetes.local_files import find_local_files, what_needs_the_internet
from launcher.kubernetes.manifest_folder import write_manifests
from launcher.kubernetes.names import check_name
from launcher.kubernetes.render import render_manifests, to_yaml
from launcher.planning import Target, plan_run
from trainer.config import load_config
from trainer.errors import ConfigError


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--profile", required=True, metavar="NAME|FILE", help="Hardware of the cluster's nodes."
)
@nodes_option
@set_option
@click.option(
    "--kind",
    type=click.Choice(get_args(Kind)),
    default="job",
    help="What carries the run out; jobset and trainjob need their controllers.",
)
@click.option("--queue", metavar="NAME", help="Kueue's local queue to wait in.")
@click.option("--image", default=DEFAULT_IMAGE, help="Where the cluster finds RankZero's image.")
@click.option("--namespace", metavar="NAME", help="Default: that of kubectl's context.")
@click.option(
    "--claim",
    "claims",
    multiple=True,
    metavar="ROLE=NAME",
    help="Use a volume claim that exists, for runs, cache, models or data. May be repeated.",
)
@click.option(
    "--internet", is_flag=True, help="Let pods reach the Hub and trackers, with tokens of a Secret."
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the manifests.",
)
def render(
    config: Path,
    profile: str,
    nodes: int | None,
    overrides: tuple[str, ...],
    kind: str,
    queue: str | None,
    image: str,
    namespace: str | None,
    claims: tuple[str, ...],
    internet: bool,
    output: Path,
) -> None:
    """Write the Kubernetes manifests of a run; no cluster is needed."""
    cluster = Cluster(
        kind=cast(Kind, kind),
        image=image,
        namespace=None if namespace is None else check_name("--namespace", namespace),
        queue=None if queue is None else check_name("--queue", queue),
        internet=internet,
        claims=_read_claims(claims),
    )
    if profile == "auto":
        raise ConfigError(
            "--profile auto is this machine",
            rule="pods run on the cluster's",
            fix="name its hardware; rankzero profiles lists what is known",
        )
    own = load_config(config, overrides)
    planned = plan_run(config, overrides, Target(profile=profile, nodes=nodes))
    local = find_local_files(own, profile)
    manifests = render_manifests(planned, own, local, cluster)
    written = write_manifests(
        output, {name: to_yaml(content) for name, content in manifests.items()}
    )
    for reason in () if internet else what_needs_the_internet(own, local):
        click.echo(f"note: {reason}: pods reach it only with --internet", err=True)
    click.echo("\n".join(str(path) for path in written))


def _read_claims(given: Sequence[str]) -> dict[Role, str]:
    found: dict[Role, str] = {}
    for text in given:
        role, _, name = text.partition("=")
        if role not in get_args(Role) or role in found:
            raise ConfigError(
                f"--claim {text}",
                rule=f"ROLE=NAME, each of {', '.join(get_args(Role))} once",
                fix="for example --claim models=shared-models",
            )
        found[cast(Role, role)] = check_name("--claim", name)
    return found
