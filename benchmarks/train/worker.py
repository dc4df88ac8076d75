"""One way of training in a process of its own: commands on stdin, answers on stdout, as JSON lines.

    python -m benchmarks.train.worker SETUP WAY

{"do": "reference"} | {"do": "step", "choice": ...} | {"do": "parity", ...} | {"do": "train", ...};
a training run answers that it is ready, then {"do": "round"} runs one round, anything else ends it.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from benchmarks.train.setup import Setup
from benchmarks.train.ways import WAYS, Choice

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "trl")


def main(setup_path: str, way_name: str) -> None:
    """Answer commands until there are no more."""
    started = time.perf_counter()
    answers = _take_stdout()
    way = WAYS[way_name]
    if way.library == "rankzero":  # as its own command begins: torch reads some of it when loaded
        import_module("trainer.entry").quiet_libraries()
    actions = import_module("benchmarks.train.actions").Actions(
        Setup.read(Path(setup_path)), way, started
    )

    def tell(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    tell({"versions": _versions()})
    while (command := _read_command()) is not None:
        given = command.get("choice")
        choice = Choice(**given) if given else None
        match command["do"]:
            case "reference":
                tell(actions.reference())
            case "step":
                tell(actions.step(choice))
            case "parity":
                tell(actions.parity(choice))
            case "train":
                tell(actions.train(choice, tell, _is_another_round))
        gc.collect()


def _read_command() -> dict[str, Any] | None:
    """Wait for a command; None when there are no more."""
    line = sys.stdin.readline()
    command: dict[str, Any] | None = json.loads(line) if line else None
    return command


def _is_another_round() -> bool:
    command = _read_command()
    return command is not None and command["do"] == "round"


def _versions() -> dict[str, str]:
    found = {distribution.name.lower() for distribution in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in _LIBRARIES if name in found}


def _take_stdout() -> TextIO:
    """Keep stdout for answers; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main(*sys.argv[1:])
