"""`rankzero cancel`"""

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
from launcher.kubernetes.client.pace import read_pace
from launcher.kubernetes.client.removal import cancel_run
from trainer.errors import Interrupted


@click.command()
@click.argument("run")
@namespace_option
@context_option
def cancel(run: str, namespace: str | None, context: str | None) -> None:
    """End a run on a cluster: its pods save, then its objects go; volumes stay."""
    name, pace = find_name(run), read_pace()
    connection = connect(context, checked(namespace))
    try:
        volumes = cancel_run(ApiServer(connection), name, pace, say)
    except (KeyboardInterrupt, Interrupted):
        say(f"pods go on saving; to remove the rest: rankzero cancel {name} {connection.options}")
        raise
    if volumes:
        say(f"kept: volume claims {', '.join(volumes)}")
    say(f"{name} is cancelled; submit it again to go on from its newest checkpoint")
