"""Findings as lines for a person, and as the error that ends the command."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.doctor.findings import Finding
from trainer.errors import EnvironmentProblem


def to_text(findings: Sequence[Finding]) -> str:
    """Write one line per finding, its fix below it, and the verdict last. PURE."""
    width = max(len(finding.topic) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:7}  {finding.topic:{width}}  {finding.text}")
        if finding.fix:
            lines.append(f"{'':7}  {'':{width}}  fix: {finding.fix}")
    num_warnings = sum(finding.state == "warning" for finding in findings)
    num_problems = sum(finding.state == "problem" for finding in findings)
    verdict = "this machine cannot train" if num_problems else "this machine can train"
    lines.append(f"{verdict}: {num_problems} problem(s), {num_warnings} warning(s)")
    return "\n".join(lines)


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
