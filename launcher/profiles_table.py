"""The shipped profiles beside what this machine is, for a person or as JSON."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from launcher.hardware import Detection, closest_shipped, detect
from launcher.profile import Profile
from launcher.profile_file import shipped_profiles

_MARK = "*"
_HEADINGS = ("", "profile", "GPUs", "GPU memory", "host", "4-bit", "offload", "summary")
_FULL_COLUMNS = 120


@dataclass(frozen=True)
class ProfilesTable:
    """Every profile, and which one this machine matches."""

    shipped: tuple[Profile, ...]
    detection: Detection
    matching: Profile | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values: profiles with their sources, the detected one, why, the match."""
        return {
            "profiles": [profile.model_dump(mode="json") for profile in self.shipped],
            "detected": self.detection.profile.model_dump(mode="json"),
            "reasons": list(self.detection.reasons),
            "matches": self.matching.name if self.matching else None,
        }

    def to_text(self) -> str:
        """Draw the table, then what was detected and why."""
        from rich.console import Console
        from rich.table import Table

        # Without a terminal rich assumes 80 columns and would break lines that nobody must read.
        width = max(shutil.get_terminal_size((120, 24)).columns, 80)
        # A narrow terminal goes without the summary, which says little more than the name.
        headings = _HEADINGS if width >= _FULL_COLUMNS else _HEADINGS[:-1]
        table = Table(box=None, pad_edge=False)
        for heading in headings:
            table.add_column(heading, no_wrap=True)
        for profile in self.shipped:
            cells = (_MARK if profile is self.matching else "", *_cells(profile))
            table.add_row(*cells[: len(headings)])
        console = Console(width=width, color_system=None)
        with console.capture() as captured:
            console.print(table)
        lines = [line.rstrip() for line in captured.get().splitlines()]
        return "\n".join([*lines, "", *self._detected_lines()])

    def _detected_lines(self) -> Iterator[str]:
        match = self.matching
        none = "this machine is less than any shipped profile"
        yield (
            f"{_MARK} the shipped profile closest to this machine: {match.name}" if match else none
        )
        yield "auto takes what this machine has:"
        yield from (f"  {reason}" for reason in self.detection.reasons)


def read_table() -> ProfilesTable:
    """Read the shipped profiles and look at this machine."""
    detection = detect()
    shipped = tuple(shipped_profiles())
    closest = closest_shipped(detection.profile)
    matching = next((p for p in shipped if closest and p.name == closest.name), None)
    return ProfilesTable(shipped, detection, matching)


def _cells(profile: Profile) -> tuple[str, ...]:
    gpu, host = profile.gpu, profile.host
    per_node = f"{profile.nodes} x {profile.gpus_per_node}" if profile.nodes > 1 else None
    return (
        profile.name,
        per_node or (str(profile.gpus_per_node) if gpu else "-"),
        f"{gpu.memory_gib:.1f} GiB" if gpu else "-",
        f"{host.memory_gib:.0f} GiB, {host.cpu_cores:g} cores",
        "yes" if profile.quantization == "nf4" else "no",
        "yes" if profile.allow_offload else "no",
        profile.summary,
    )
