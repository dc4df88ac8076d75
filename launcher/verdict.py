"""What an attempt came to: shown to the user, written to status.json, raised."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import click

from launcher.attempt import Attempt
from launcher.diagnosis import Evidence, RankEnd, Verdict, judge, last_lines
from trainer.errors import ConfigError
from trainer.run_directory import RunDirectory
from trainer.status import Ending, write_termination_log, write_verdict


def conclude(
    attempt: Attempt,
    ranks: Sequence[RankEnd],
    evidence: Evidence,
    *,
    status_before: Mapping[str, Any],
) -> int:
    """Return 0 for a completed attempt. `status_before`: what status.json said when it began.

    Raises: RankZeroError, the cause, with its exit code.
    """
    if not attempt.folder.is_dir():
        raise attempt.run.gone()
    verdict = judge(ranks, evidence)
    if verdict is None:
        return 0
    error = verdict.error
    ending = Ending(
        state=verdict.state,
        exit_code=error.exit_code,
        rank=verdict.rank,
        error=verdict.name,
        message=error.what,
        remedy=error.fix,
    )
    if _tells_of_another(attempt.run, status_before, error.exit_code):
        write_termination_log(ending)
    else:
        write_verdict(attempt.run, ending)
    if verdict.state == "failed":
        _show_log(attempt, verdict)
    raise error


def _tells_of_another(run: RunDirectory, before: Mapping[str, Any], exit_code: int) -> bool:
    """Whether status.json tells of somebody who is at work, or of an attempt before this one.

    One that was refused, or never came to train, leaves a completed run completed.
    """
    if run.process_at_work() is not None:
        return True
    was_refused = exit_code == ConfigError.exit_code
    kept = ("completed", "failed", "interrupted") if was_refused else ("completed",)
    return before.get("state") in kept and run.read_status() == before


def _show_log(attempt: Attempt, verdict: Verdict) -> None:
    """Show where the rank's log is and, unless the user has seen it pass by, its last lines."""
    rank = verdict.rank or 0
    if verdict.rank == 0:
        with contextlib.suppress(OSError), attempt.log(0).open("a", encoding="utf-8") as log:
            log.write(f"error: {verdict.error}\n")  # rank 0 left the telling to us
    is_told = verdict.error.fix and not verdict.is_silent
    if is_told:
        return
    click.echo(f"log of rank {rank}: {attempt.log(rank)}", err=True)
    if rank > 0:
        for line in last_lines(attempt.last_text(rank)):
            click.echo(f"  {line}", err=True)
