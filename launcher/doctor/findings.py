"""One thing the doctor found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "warning", "problem"]
Group = Literal["", "packages as tested"]


@dataclass(frozen=True)
class Finding:
    """A topic, how it stands, and what to do when it does not stand well."""

    topic: str
    state: State
    text: str
    fix: str = ""
    group: Group = ""
    """Findings that one line stands for on the screen; JSON has each of them."""


def ok(topic: str, text: str) -> Finding:
    """Make a finding that needs nothing."""
    return Finding(topic, "ok", text)


def note(topic: str, text: str, fix: str = "") -> Finding:
    """Make a finding about what this machine does without, and few runs need."""
    return Finding(topic, "note", text, fix)


def warning(topic: str, text: str, fix: str) -> Finding:
    """Make a finding that costs a feature or speed; training works."""
    return Finding(topic, "warning", text, fix)


def problem(topic: str, text: str, fix: str) -> Finding:
    """Make a finding that keeps this machine from training."""
    return Finding(topic, "problem", text, fix)
