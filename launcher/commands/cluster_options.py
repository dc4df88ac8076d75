"""What `render` and `submit` are told about a run and its cluster, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import click

from launcher.commands.options import nodes_option, set_option
from launcher.kubernetes.cluster import DEFAULT_IMAGE, Cluster, Kind, Role
from launcher.kubernetes.manifests.local_files import find_local_files, what_needs_the_internet
from launcher.kubernetes.manifests.render import render_manifests
from launcher.kubernetes.names import check_name, run_name
from launcher.planning import PlannedRun, Target, plan_run
from trainer.config import load_config
from trainer.errors import ConfigError

_Command = TypeVar("_Command", bound=Callable[..., Any])
_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")

namespace_option = click.option(
    "--namespace", metavar="NAME", help="Default: that of kubectl's context."
)
context_option = click.option(
    "--context", metavar="NAME", help="Of the kubeconfig; default its current one."
)
_RUN_OPTIONS = (
    click.argument("config", type=click.Path(path_type=Path)),
    click.option(
        "--profile", required=True, metavar="NAME|FILE", help="Hardware of the cluster's nodes."
    ),
    nodes_option,
    set_option,
    click.option(
        "--kind",
        type=click.Choice(get_args(Kind)),
        default="job",
        help="What carries the run out; jobset and trainjob need their controllers.",
    ),
    click.option("--queue", metavar="NAME", help="Kueue's local queue to wait in."),
    click.option(
        "--image", default=DEFAULT_IMAGE, help="Where the cluster finds RankZero's image."
    ),
    namespace_option,
    click.option(
        "--claim",
        "claims",
        multiple=True,
        metavar="ROLE=NAME",
        help="Use a volume claim that exists, for runs, cache, models or data. May be repeated.",
    ),
    click.option(
        "--internet",
        is_flag=True,
        help="Let pods reach the Hub and trackers, with tokens of a Secret.",
    ),
)


@dataclass(frozen=True)
class RenderedRun:
    """A planned run and its objects by file name."""

    planned: PlannedRun
    manifests: dict[str, dict[str, Any]]
    notes: tuple[str, ...]
    """What the user may have overlooked."""


@dataclass(frozen=True)
class RunOptions:
    """The options as they were given."""

    config: Path
    profile: str
    nodes: int | None
    overrides: tuple[str, ...]
    kind: str
    queue: str | None
    image: str
    namespace: str | None
    claims: tuple[str, ...]
    internet: bool

    def render(self) -> RenderedRun:
        """Plan the run for the cluster's machines and return its objects.

        Raises: ConfigError, EnvironmentProblem.
        """
        cluster = self._cluster()
        if self.profile == "auto":
            raise ConfigError(
                "--profile auto is this machine",
                rule="pods run on the cluster's",
                fix="name its hardware; rankzero profiles lists what is known",
            )
        own = load_config(self.config, self.overrides)
        target = Target(profile=self.profile, nodes=self.nodes)
        planned = plan_run(self.config, self.overrides, target)
        local = find_local_files(own, self.profile)
        manifests = render_manifests(planned, own, local, cluster)
        needs = [] if self.internet else what_needs_the_internet(own, local)
        notes = tuple(f"note: {each}: pods reach it only with --internet" for each in needs)
        return RenderedRun(planned, manifests, notes)

    def _cluster(self) -> Cluster:
        return Cluster(
            kind=cast(Kind, self.kind),
            image=self.image,
            namespace=checked(self.namespace),
            queue=None if self.queue is None else check_name("--queue", self.queue),
            internet=self.internet,
            claims=_read_claims(self.claims),
        )


def run_options(command: _Command) -> _Command:
    """Give a command all options of `RunOptions`."""
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command


def say(line: str) -> None:
    """Tell the user something; stdout is for what a run prints."""
    click.echo(line, err=True)


def checked(namespace: str | None) -> str | None:
    """Return the namespace as it was given, if it was.

    Raises: ConfigError when none can be called so.
    """
    return None if namespace is None else check_name("--namespace", namespace)


def find_name(run: str) -> str:
    """Return the name of a run that is given by its name, or by the config it was made from.

    Raises: ConfigError.
    """
    path = Path(run)
    if path.suffix in _CONFIG_SUFFIXES or path.is_file():
        return run_name(load_config(path).output_dir)
    return check_name("RUN", run)


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
