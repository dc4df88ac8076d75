"""`rankzero logs`"""

from __future__ import annotations

import click

from launcher.commands.cluster_options import (
    checked,
    context_option,
    find_name,
    namespace_option,
    say,
)
from launcher.kubernetes.client.api import ApiServer
from launcher.kubernetes.client.connection import connect
from launcher.kubernetes.client.follow import coming_back, follow
from launcher.kubernetes.client.node_log import NodeLog
from launcher.kubernetes.client.pace import read_pace
from launcher.kubernetes.client.reading import find_workloads, read_state
from launcher.kubernetes.client.removal import no_run
from trainer.errors import ConfigError, EnvironmentProblem


@click.command()
@click.argument("run")
@namespace_option
@context_option
@click.option("--follow", "is_followed", is_flag=True, help="Go on until the run ends.")
@click.option("--node", type=click.IntRange(min=0), default=0, help="Which node's; default 0.")
@click.option("--all-attempts", is_flag=True, help="Also of pods that ended before the newest.")
def logs(
    run: str,
    namespace: str | None,
    context: str | None,
    is_followed: bool,
    node: int,
    all_attempts: bool,
) -> None:
    """Print what a run on a cluster prints; followed, its outcome is the exit code."""
    name, pace = find_name(run), read_pace()
    connection = connect(context, checked(namespace))
    api = ApiServer(connection)
    workloads = find_workloads(api, name)
    state = read_state(api, workloads[0]["kind"], name) if workloads else None
    if state is None:
        raise no_run(name, api.namespace)
    log = NodeLog(api, node, write=click.echo)
    if not all_attempts:
        log.skip_earlier(state)
    if not is_followed:
        log.read(state)
        for pod, why in log.unread.items():
            raise _unread(pod, why)
        if not any(pod.index == node and pod.has_log for pod in state.pods):
            raise _nothing_yet(name, node, [pod.index for pod in state.current])
        return
    with coming_back(name, connection, say):
        error = follow(api, workloads[0]["kind"], name, log=log, pace=pace, say=say)
    if error is not None:
        raise error


def _unread(pod: str, why: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the log of pod {pod} cannot be read: {why}",
        rule="the machine a pod ran on keeps its log, and has to answer",
        fix="the run directory, on the runs volume, has the logs of all attempts under attempts/",
    )


def _nothing_yet(name: str, node: int, nodes: list[int]) -> ConfigError:
    found = f"it has nodes {', '.join(map(str, nodes))}" if nodes else "it has no pods"
    return ConfigError(
        f"node {node} of {name} has printed nothing",
        rule=f"{found}; a pod prints once its container has started",
        fix=f"`rankzero status {name}` says what it waits for; --follow waits with it",
    )
