"""`rankzero submit`"""

from __future__ import annotations

import dataclasses
from typing import Any

import click
from rich.console import Console

from launcher.commands.cluster_options import RunOptions, checked, context_option, run_options, say
from launcher.kubernetes.client.api import ApiServer
from launcher.kubernetes.client.connection import connect
from launcher.kubernetes.client.follow import coming_back, follow, how_to_come_back
from launcher.kubernetes.client.node_log import NodeLog
from launcher.kubernetes.client.pace import read_pace
from launcher.kubernetes.client.reading import read_state
from launcher.kubernetes.client.sending import make, remove_finished, try_out
from launcher.kubernetes.client.submission import make_submission
from launcher.plan_table import render_summary


@click.command()
@run_options
@context_option
@click.option("--detach", is_flag=True, help="Return as soon as the run is submitted.")
def submit(context: str | None, detach: bool, **options: Any) -> None:
    """Plan a run, send it to a cluster and follow it; submitted again, it goes on."""
    given, pace = RunOptions(**options), read_pace()
    connection = connect(context, checked(given.namespace))
    # The namespace is part of every request's path: the same run is the same in each.
    rendered = dataclasses.replace(given, namespace=None).render()
    plan = rendered.planned.plan
    summary = render_summary(plan, rendered.planned.reasons)
    Console(stderr=True, highlight=False, soft_wrap=True).print(summary)
    for note in rendered.notes:
        say(note)
    submission = make_submission(rendered.manifests, plan.nodes)
    name, api = submission.name, ApiServer(connection)
    tried = try_out(api, submission)
    if tried.step == "follow":
        say(f"{name} is at work with the same config")
    else:
        remove_finished(api, tried.existing, pace, say)
        make(api, submission, tried.missing_claims, pace)
        say(f"submitted {submission.kind} {name} to namespace {api.namespace}")
    if detach:
        say(how_to_come_back(name, connection))
        return
    log = NodeLog(api, write=click.echo)
    if tried.step == "follow":
        log.skip_earlier(read_state(api, submission.kind, name))
    with coming_back(name, connection, say):
        error = follow(api, submission.kind, name, log=log, pace=pace, say=say)
    if error is not None:
        raise error
    say(f"{name} is complete")
