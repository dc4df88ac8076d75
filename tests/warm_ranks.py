"""Ranks that begin warm: forked from a process that has imported what the trainer imports.

What a run computes does not depend on how its process came to be, and imports take several times
as long as a small test's training. Where the start itself matters, `tests.commands` runs real
commands; runs that are compared bit for bit have one of each side, with other hash seeds.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from launcher.engines.rendezvous import free_port

_IMPORTED = ["deepspeed", "peft", "tests.warm_ranks", "trainer.main"]
_PATIENCE_SECONDS = 600


@dataclass(frozen=True)
class Finished:
    """How a run ended, as `subprocess.run` would tell it."""

    returncode: int
    """The first of any rank that is not 0."""
    stderr: str
    """Of all ranks."""


def train_warm(config: Path, *arguments: str, ranks: int = 1) -> Finished:
    """Run `python -m trainer --config CONFIG ARGUMENTS` on so many ranks, as torchrun would."""
    context = _server()
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(ranks):
            place = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": ranks,
                "LOCAL_WORLD_SIZE": ranks,
            }
            own = {name: str(value) for name, value in place.items()} if ranks > 1 else {}
            environment = {**os.environ, **_QUIET, **own, **(meeting if ranks > 1 else {})}
            given = ["--config", str(config), *arguments]
            said = Path(folder, str(rank))
            processes.append(context.Process(target=_run_rank, args=(given, environment, said)))
        for process in processes:
            process.start()
        codes = []
        for process in processes:
            process.join(_PATIENCE_SECONDS)
            process.kill()
            process.join()
            codes.append(process.exitcode)
        told = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir()))
    return Finished(next((code for code in codes if code), 0), told)


_QUIET = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


@cache
def _server() -> ForkServerContext:
    """Start the process that ranks are forked from: one for each process that runs tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _QUIET.items():
            patch.setenv(name, value)
        multiprocessing.forkserver.ensure_running()
    return context


def _run_rank(arguments: list[str], environment: dict[str, str], said: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with said.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from trainer.__main__ import run_rank
    from trainer.entry import run_entry

    code = run_entry(run_rank, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
