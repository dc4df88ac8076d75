"""How runs on a cluster stand, for a person or as JSON."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from launcher.kubernetes.client.api import Api
from launcher.kubernetes.client.describe import waiting_for
from launcher.kubernetes.client.observe import PodState, RunState
from launcher.kubernetes.client.outcome import judge, summarize
from launcher.kubernetes.client.reading import find_workloads, read_state
from launcher.kubernetes.client.refusal import Refusal, Unreachable
from launcher.kubernetes.client.removal import no_run
from launcher.kubernetes.manifests.pod import CONTAINER

_ABSENT = "-"
_LAST_LINES = 5


@dataclass(frozen=True)
class Status:
    """One run, and what rank 0 printed last."""

    state: RunState
    namespace: str
    last_lines: tuple[str, ...]


def read_status(api: Api, name: str) -> Status:
    """Ask the cluster how a run stands.

    Raises: ConfigError when there is none of that name.
    """
    workloads = find_workloads(api, name)
    state = read_state(api, workloads[0]["kind"], name) if workloads else None
    if state is None:
        raise no_run(name, api.namespace)
    return Status(state, api.namespace, _last_lines(api, state))


def run_to_json(state: RunState) -> dict[str, Any]:
    """Return plain values; exit code and error of a run that is over, as `logs --follow` ends."""
    values = dataclasses.asdict(state)
    for pod in values["pods"]:
        del pod["has_log"]  # of use to nobody else
    reason, message = values.pop("verdict") or (None, None)
    error = judge(state) if state.is_over else None
    outcome = {
        "exit_code": 0 if error is None else error.exit_code,
        "error": None if error is None else type(error).__name__,
        "message": None if error is None else error.what,
        "fix": None if error is None else error.fix,
        "reason": reason,
        "reason_message": message,
    }
    return {
        **values,
        "attempts": state.attempts,
        "outcome": outcome if state.is_over else None,
    }


def status_to_json(status: Status) -> dict[str, Any]:
    """Return plain values."""
    return {
        "namespace": status.namespace,
        **run_to_json(status.state),
        "last_lines": list(status.last_lines),
    }


def run_to_text(status: Status) -> str:
    """Draw one run: how it stands, its nodes, what it waits for, the last lines of rank 0."""
    state = status.state
    queue = f", queue {state.queue}" if state.queue else ""
    lines = [
        f"{state.name}: {state.phase} since {_time(state.since)}",
        f"{state.kind} in namespace {status.namespace}{queue}, submitted {_time(state.created)}, "
        f"{state.attempts} attempt{'s' if state.attempts != 1 else ''}",
    ]
    if state.wait is not None:
        lines.append(waiting_for(state.wait))
    if state.pods:
        lines += ["", *_nodes_table(state)]
    waits = [f"node {pod.index} {waiting_for(pod.wait)}" for pod in state.current if pod.wait]
    if waits:
        lines += ["", *waits]
    if status.last_lines:
        lines += ["", "the last lines of rank 0:", *(f"  {line}" for line in status.last_lines)]
    error = judge(state) if state.is_over else None
    if error is not None:
        lines += ["", f"failed with exit code {error.exit_code}: {error}"]
    return "\n".join(lines)


def runs_to_text(states: Sequence[RunState], namespace: str) -> str:
    """Draw the runs of a namespace."""
    if not states:
        return f"no runs in namespace {namespace}"
    rows = [
        (
            state.name,
            state.kind,
            state.phase,
            _time(state.since),
            str(state.attempts),
            _exit_code(state),
        )
        for state in states
    ]
    lines = _table(("run", "kind", "phase", "since", "attempts", "exit code"), rows)
    reasons = [f"{state.name} {reason}" for state in states if (reason := _reason(state))]
    return "\n".join([*lines, "", *reasons] if reasons else lines)


def _exit_code(state: RunState) -> str:
    if not state.is_over:
        return _ABSENT
    error = judge(state)
    return str(0 if error is None else error.exit_code)


def _reason(state: RunState) -> str:
    """Return why a run waits or failed; a table has no room for it."""
    if state.is_over:
        error = judge(state)
        return "" if error is None else f"failed: {error.what.splitlines()[0]}"
    wait = state.wait or next((pod.wait for pod in state.current if pod.wait), None)
    return "" if wait is None else waiting_for(wait)


def _nodes_table(state: RunState) -> list[str]:
    rows = []
    for pod in state.current:
        earlier = [each for each in state.pods if each.index == pod.index and each.ended]
        ended = earlier[-1].ended if earlier else None
        rows.append(
            (
                str(pod.index),
                pod.phase,
                _time(pod.since),
                pod.machine or _ABSENT,
                _ended(pod, summarize(ended) if ended else _ABSENT),
                pod.name,
            )
        )
    return _table(("node", "phase", "since", "machine", "last end", "pod"), rows)


def _ended(pod: PodState, words: str) -> str:
    """A failure in full is told below the table."""
    return words.partition(":")[0] if pod.ended and pod.ended.exit_code is not None else words


def _last_lines(api: Api, state: RunState) -> tuple[str, ...]:
    pods = [pod for pod in state.pods if pod.index == 0 and pod.has_log]
    if not pods:
        return ()
    try:
        text = api.read_log(pods[-1].name, CONTAINER, last_lines=_LAST_LINES)
    except (Refusal, Unreachable) as error:
        return (f"(the log cannot be read: {error.what})",)
    return tuple(line.partition(" ")[2] for line in text.splitlines())


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=heading in ("node", "phase", "since"), overflow="fold")
    for row in rows:
        table.add_row(*row)
    # Without a terminal rich assumes 80 columns and would break lines that nobody must read.
    width = max(shutil.get_terminal_size((160, 24)).columns, 80)
    console = Console(width=width, color_system=None, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def _time(moment: str) -> str:
    """Write a time of the API's as the clock here shows it."""
    try:
        found = datetime.fromisoformat(moment.replace("Z", "+00:00"))
    except ValueError:
        return _ABSENT
    return found.astimezone().strftime("%Y-%m-%d %H:%M")
