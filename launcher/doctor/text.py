"""Findings as lines for a person, and as the error that ends the command."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from launcher.doctor.findings import Finding, ok
from trainer.errors import EnvironmentProblem

_COLUMNS = 80


def to_text(findings: Sequence[Finding]) -> str:
    """Write each finding, its fix below it, and the verdict last. PURE."""
    shown = _fold(findings)
    width = max(len(finding.topic) for finding in shown)
    lines = [line for finding in shown for line in _lines(finding, width)]
    num_warnings = sum(finding.state == "warning" for finding in findings)
    num_problems = sum(finding.state == "problem" for finding in findings)
    verdict = "this machine cannot train" if num_problems else "this machine can train"
    lines.append(f"{verdict}: {num_problems} problem(s), {num_warnings} warning(s)")
    return "\n".join(lines)


def _fold(findings: Sequence[Finding]) -> list[Finding]:
    """Put one line where the packages as tested begin: 20 of them hide what matters."""
    shown, num_tested = [], sum(finding.group == "packages as tested" for finding in findings)
    for finding in findings:
        if not finding.group:
            shown.append(finding)
        elif num_tested:
            shown.append(
                ok("packages", f"{num_tested} as tested; rankzero doctor --json lists them")
            )
            num_tested = 0
    return shown


def _lines(finding: Finding, width: int) -> Iterator[str]:
    start = f"{finding.state:7}  {finding.topic:{width}}  "
    indent = " " * len(start)
    yield from textwrap.wrap(
        finding.text,
        _COLUMNS,
        initial_indent=start,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    if finding.fix:
        yield f"{indent}fix: {finding.fix}"  # never broken: it is there to be copied


def refuse_problems(findings: Sequence[Finding]) -> None:
    """Raise the first problem, if there is one.

    Raises: EnvironmentProblem.
    """
    problems = [finding for finding in findings if finding.state == "problem"]
    if problems:
        topics = ", ".join(dict.fromkeys(finding.topic for finding in problems))
        raise EnvironmentProblem(
            f"this machine cannot train: {topics}",
            rule="every required part works before a run starts",
            fix=problems[0].fix,
        )
