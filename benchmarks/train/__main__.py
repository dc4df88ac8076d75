"""Useful tokens per second of RankZero beside its peers, in one run on this machine.

    python -m benchmarks.train --model models/smollm2-135m-instruct --peers ../peers/bin/python

TRL is looked for in the interpreter given by --peers; without it, its ways are left out and said
so. The result is printed as Markdown and written as JSON after every profile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.train.machine import describe_machine
from benchmarks.train.measure import Lab, measure
from benchmarks.train.prepared import set_up
from benchmarks.train.processes import ROOT
from benchmarks.train.profiles import PROFILES
from benchmarks.train.tables import noise_line, profile_table, rows_line
from benchmarks.train.ways import DEFAULT_WAYS, WAYS


def main() -> None:
    """Measure the profiles asked for, one after another."""
    options = _options()
    ways, left_out = choose_ways(options.ways, has_trl=_has_trl(options.peers))
    lab = Lab(
        pythons={
            "rankzero": sys.executable,
            "transformers": sys.executable,
            "trl": options.peers,
        },
        threads=options.threads,
        rounds=options.rounds,
        model=json.loads((options.model / "config.json").read_text(encoding="utf-8")),
    )
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": describe_machine(options.threads),
        "model": options.model.name,
        "settings": options.set,
        "left_out": left_out,
        "profiles": {},
    }
    for reason in left_out:
        print(reason)
    names = list(PROFILES) if options.profile == "all" else [options.profile]
    for name in names:
        print(f"\n{name}:", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            profile = PROFILES[name]
            setup, facts = set_up(profile, options.model, Path(folder), options.steps, options.set)
            figures = {**facts, **measure(lab, setup, ways)}
        result["profiles"][name] = figures
        print("\n".join(["", rows_line(figures), noise_line(figures), ""]))
        print("\n".join(profile_table(figures)), flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def choose_ways(asked: Sequence[str], *, has_trl: bool) -> tuple[list[str], list[str]]:
    """Return the ways that can run, and a line for each that cannot. PURE."""
    missing = [name for name in asked if WAYS[name].library == "trl" and not has_trl]
    lines = [f"{WAYS[name].title}: the interpreter of --peers has no trl" for name in missing]
    return [name for name in asked if name not in missing], lines


def _has_trl(python: str) -> bool:
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('trl') is None)"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--model", type=Path, default=ROOT / "models" / "smollm2-135m-instruct", help="folder")
    add("--profile", choices=[*PROFILES, "all"], default="all")
    add("--rounds", type=int, default=5, help="measured rounds of each way")
    add("--steps", type=int, help="optimizer steps of a round (default: the profile's)")
    add("--ways", nargs="+", choices=list(WAYS), default=DEFAULT_WAYS)
    add("--peers", default=sys.executable, help="interpreter that has trl")
    add("--threads", type=int, default=_cores(), help="of every way")
    add("--set", action="append", default=[], help="a setting of RankZero's config, NAME=VALUE")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "train-cpu.json")
    return parser.parse_args()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    main()
