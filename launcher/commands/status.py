"""`rankzero status`"""

from __future__ import annotations

import json

import click

from launcher.commands.cluster_options import (
    checked,
    context_option,
    find_name,
    namespace_option,
)
from launcher.kubernetes.client.api import ApiServer
from launcher.kubernetes.client.connection import connect
from launcher.kubernetes.client.reading import read_all_states
from launcher.kubernetes.client.status_screen import (
    read_status,
    run_to_json,
    run_to_text,
    runs_to_text,
    status_to_json,
)


@click.command()
@click.argument("run", required=False)
@namespace_option
@context_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON on stdout.")
def status(run: str | None, namespace: str | None, context: str | None, as_json: bool) -> None:
    """Show how a run on a cluster stands, or all runs of a namespace."""
    name = None if run is None else find_name(run)
    api = ApiServer(connect(context, checked(namespace)))
    if name is None:
        states = read_all_states(api)
        values = {"namespace": api.namespace, "runs": [run_to_json(each) for each in states]}
        text = runs_to_text(states, api.namespace)
    else:
        found = read_status(api, name)
        values, text = status_to_json(found), run_to_text(found)
    click.echo(json.dumps(values, indent=2) if as_json else text)
