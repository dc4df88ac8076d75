"""Probes of the heavy libraries in a process of their own: a crash or a hang costs one answer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

PROBES = ("torch", "bitsandbytes", "deepspeed", "flash_attn")
# Importing everything takes 5 to 10 s on an idle machine; a cold network disk ten times that.
_LIMIT_SECONDS = 120.0
_MARK = "probe: "


@dataclass(frozen=True)
class Probed:
    """What one library can do here, or why it could not say."""

    state: Literal["found", "absent", "broken"]
    found: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def probe_libraries(
    names: Sequence[str] = PROBES,
    command: Sequence[str] = (sys.executable, "-m", "trainer.probe"),
    limit_seconds: float = _LIMIT_SECONDS,
) -> dict[str, Probed]:
    """Probe each library in turn; a process that dies is started again after the one it died of."""
    results: dict[str, Probed] = {}
    deadline = time.monotonic() + limit_seconds
    while remaining := [name for name in names if name not in results]:
        lines, ending = _run([*command, *remaining], deadline - time.monotonic())
        results.update(read_lines(lines))
        silent = [name for name in remaining if name not in results]
        if silent:
            results[silent[0]] = Probed("broken", error=ending)
    return results


def _run(command: Sequence[str], limit_seconds: float) -> tuple[list[str], str]:
    """Return the lines of stdout, and how the process ended in words."""
    if limit_seconds <= 0:
        return [], "not tried: the time limit was used up before"
    try:
        ended = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_seconds,
        )
    except subprocess.TimeoutExpired as late:
        printed = late.stdout or b""
        text = printed.decode(errors="replace") if isinstance(printed, bytes) else printed
        return text.splitlines(), f"no answer within {limit_seconds:.0f} s"
    if ended.returncode < 0:
        return ended.stdout.splitlines(), f"crashed: {signal.Signals(-ended.returncode).name}"
    last = [line for line in ended.stderr.splitlines() if line.strip()][-1:]
    return ended.stdout.splitlines(), last[0] if last else f"ended with code {ended.returncode}"


def read_lines(lines: Sequence[str]) -> dict[str, Probed]:
    """Pick the answers out of what the libraries print as well. PURE."""
    results = {}
    for line in lines:
        if not line.startswith(_MARK):
            continue
        answer = json.loads(line.removeprefix(_MARK))
        if answer["state"] != "began":
            results[answer["probe"]] = Probed(
                answer["state"], answer.get("found", {}), answer.get("error", "")
            )
    return results
