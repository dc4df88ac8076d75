"""A plan as tables for a person."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from launcher.run_plan import RunPlan

_NUMBERS = ("peak", "there are", "share", "GiB")
_NEVER_FOLDED = ("setting", "where", *_NUMBERS)
"""Names to copy into a config, and figures: whole in a terminal of 80 columns too."""


def print_plan(console: Console, plan: RunPlan, reasons: tuple[str, ...]) -> None:
    """Print what was decided and why, what it takes, and what was rejected."""
    console.print(render_plan(plan, reasons))


def render_plan(plan: RunPlan, reasons: tuple[str, ...]) -> RenderableType:
    """Return the tables."""
    where = f"{plan.nodes} node(s) x {plan.processes_per_node} process(es)"
    parts: list[RenderableType] = [
        Text(f"profile {plan.profile} ({plan.device}), {where}", style="bold")
    ]
    parts += [Text(f"  {reason}", style="dim") for reason in reasons]
    parts += [_decisions(plan), _usage(plan), _terms(plan)]
    if plan.rejected:
        parts.append(_rejected(plan))
    parts += [Text(f"note: {note}") for note in plan.notes]
    return Group(*parts)


def render_summary(plan: RunPlan, reasons: tuple[str, ...]) -> Text:
    """Return what `train` says before it starts: where, how, and how full it will be."""
    lines = [f"profile: {plan.profile}", *(f"  {reason}" for reason in reasons)]
    lines += [
        f"plan: {plan.strategy}; {plan.engine}, {plan.nodes} node(s) x "
        f"{plan.processes_per_node} process(es)"
    ]
    lines += [
        f"{usage.place}: {usage.gib:.1f} of {usage.available_gib:.1f} GiB"
        for usage in plan.usage[:1]
    ]
    return Text("\n".join(lines))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in _NUMBERS else "left",
            overflow="fold",
            no_wrap=column in _NEVER_FOLDED,
        )
    return table


def _decisions(plan: RunPlan) -> Table:
    table = _table("decided", "setting", "value", "because")
    for decision in plan.decisions:
        table.add_row(decision.setting, decision.value, decision.reason)
    return table


def _usage(plan: RunPlan) -> Table:
    table = _table("needed", "GiB of", "peak", "there are", "share")
    for usage in plan.usage:
        share = usage.gib / usage.available_gib if usage.available_gib else 0.0
        table.add_row(usage.place, f"{usage.gib:.1f}", f"{usage.available_gib:.1f}", f"{share:.0%}")
    return table


def _terms(plan: RunPlan) -> Table:
    table = _table("made of", "term", "where", "GiB", "when", "source")
    for term in sorted(plan.terms, key=lambda term: (term.place != "device", -term.gib)):
        when = "" if term.when == "always" else term.when
        table.add_row(term.name, term.place, f"{term.gib:.2f}", when, term.source)
    return table


def _rejected(plan: RunPlan) -> Table:
    table = _table("rejected", "strategy", "because")
    for rejection in plan.rejected:
        table.add_row(rejection.strategy, rejection.reason)
    return table
