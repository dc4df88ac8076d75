"""The GPU protocol: how fast and how large, beside others, on one card, without a network.

    python -m benchmarks.gpu [--only NAME ...] [--minutes 10] [--output FILE]
    python -m benchmarks.gpu --dry-run      every path on the CPU, with tiny models

Base models have the shapes of real ones and random weights. Prints Markdown; every single timing
goes to a JSON file. Exit code 1 when gradients differ, a measurement failed, or a number cannot be
true.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.card import describe_machine, memory_gib
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.protocol import Protocol
from benchmarks.gpu.runner import ROOT, Runner
from benchmarks.gpu.sizes import dry_sizes, real_sizes
from trainer.entry import quiet_libraries

RESULTS = ROOT / "benchmarks" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts asked for and return the exit code."""
    options = _parse(arguments)
    quiet_libraries()
    machine = describe_machine()
    if not options.dry_run and not machine["card"]:
        print("no NVIDIA card: nothing to measure. --dry-run runs every part on the CPU")
        return 3
    sizes = dry_sizes() if options.dry_run else real_sizes(memory_gib(machine))
    runner = Runner(60 * options.minutes, isolated=not options.dry_run)
    protocol = Protocol(runner, sizes)
    names = [name for name in PARTS if not options.only or name in options.only]
    print(_machine_line(machine), flush=True)
    if options.dry_run:
        print("dry run: every path is taken, and no figure below means anything")
    tables: dict[str, list[str]] = {}
    for number, name in enumerate(names):
        measure, share = PARTS[name]
        runner.begin_part(share / sum(PARTS[other][1] for other in names[number:]))
        tables[name] = measure(protocol)
        print(f"\n## {name}\n", *tables[name], sep="\n", flush=True)
    output = options.output or _default_output(machine, options.dry_run)
    output.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": machine,
        "machine_after": describe_machine(),
        "tables": tables,
        "problems": protocol.problems,
        "measurements": runner.records,
    }
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nevery timing: {output}")
    for problem in protocol.problems:
        print(f"PROBLEM {problem}")
    return 1 if protocol.problems else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="NAME", default=())
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts together")
    parser.add_argument("--output", type=Path, help="the JSON file")
    return parser.parse_args(arguments)


def _machine_line(machine: dict[str, Any]) -> str:
    card = machine["card"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    what = f"{card['name']}, driver {card['driver_version']}" if card else "no card"
    return f"{machine['date']}: {what}, load {machine['load'][0]:.2f}; {versions}"


def _default_output(machine: dict[str, Any], is_dry: bool) -> Path:
    if is_dry:
        return Path(tempfile.gettempdir()) / "gpu-dry-run.json"
    card = re.sub(r"[^a-z0-9]+", "-", machine["card"]["name"].lower()).strip("-")
    return RESULTS / f"gpu-{card}-{machine['date'][:10]}.json"


if __name__ == "__main__":
    sys.exit(main())
