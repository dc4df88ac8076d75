"""Ranks that begin warm: forked from a process that has imported what the trainer imports.

What a run computes does not depend on how its process came to be, and imports take several times
as long as a small test's training. Where the start itself matters, `tests.commands` runs real
commands: the engines, signals, and one side of a comparison bit for bit, for these ranks share
their hash seed.
"""

from __future__ import annotations

import multiprocessing.forkserver
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from launcher.engines.rendezvous import free_port

_IMPORTED = ["deepspeed", "peft", "tests.warm_ranks", "trainer.main"]
_FOR_ALL = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
_PATIENCE_SECONDS = 600


@dataclass(frozen=True)
class Finished:
    """How ranks ended, as `subprocess.run` would tell it."""

    returncode: int
    """The first that is not 0."""
    stderr: str
    """Of all ranks, stdout included."""


def train_warm(config: Path, *arguments: str, ranks: int = 1) -> Finished:
    """Run `python -m trainer --config CONFIG ARGUMENTS` on so many ranks, as torchrun would."""
    return run_warm(partial(_train, ["--config", str(config), *arguments]), ranks)


def run_warm(work: Callable[[], int | None], ranks: int) -> Finished:
    """Run `work` on so many ranks; what it returns is a rank's exit code. It must pickle."""
    with tempfile.TemporaryDirectory() as folder:
        told = [Path(folder, str(rank)) for rank in range(ranks)]
        processes = [
            _server().Process(target=_run_rank, args=(work, environment, output))
            for environment, output in zip(_environments(ranks), told, strict=True)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(_PATIENCE_SECONDS)
            process.kill()
            process.join()
        codes = [process.exitcode for process in processes]
        text = "".join(path.read_text(encoding="utf-8") for path in told if path.exists())
    return Finished(next((code for code in codes if code), 0), text)


def _environments(ranks: int) -> list[dict[str, str]]:
    """What torchrun tells each rank; nothing where there is one process."""
    shared = {**os.environ, **_FOR_ALL}
    if ranks == 1:
        return [shared]
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


@cache
def _server() -> ForkServerContext:
    """Start the process that ranks are forked from: one for each process that runs tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _FOR_ALL.items():  # read when torch is loaded
            patch.setenv(name, value)
        multiprocessing.forkserver.ensure_running()
    return context


def _run_rank(work: Callable[[], int | None], environment: dict[str, str], output: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = work()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _train(arguments: list[str]) -> int:
    from trainer.__main__ import run_rank
    from trainer.entry import run_entry

    return run_entry(run_rank, arguments)
