"""A `rankzero train` at work: its processes, how far it is, and a way to stop it anywhere."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import psutil

from tests.commands import EXAMPLE_DATA, write_config
from trainer.attempt import VARIABLE, read_record
from trainer.checkpoints.folder import list_checkpoints
from trainer.checkpoints.manifest import find_problem, newest_valid

PATIENCE_SECONDS = 300  # for what a loaded machine does slowly
LONG_SECONDS = 1800  # for a whole run
LOOK_SECONDS = 0.002
RANKS = 2


def write_eventful_config(folder: Path, base: Path, *, steps: int, zero: str | None) -> Path:
    """Write a config whose run tells where it was cut: dropout, evaluations, a best model."""
    rows = folder / "rows.jsonl"
    lines = (EXAMPLE_DATA / "medical_qa.jsonl").read_text(encoding="utf-8").splitlines()
    rows.write_text("\n".join(lines[:80]) + "\n", encoding="utf-8")
    training = {"max_steps": steps, "precision": "fp32", "dataloader_workers": 1}
    return write_config(
        folder / "run.json",
        base,
        folder / "straight",
        data={"train": str(rows), "validation_size": 8, "test_size": 8},
        training=training if zero is None else {**training, "deepspeed_config": zero},
        lora={"dropout": 0.1},
        evaluation={"every_steps": 5},
        checkpoint={"every_steps": 1},
    )


@dataclass
class LiveRun:
    """One attempt: the launcher, and the run directory it works on."""

    run: Path
    output: Path
    """What it says."""
    process: subprocess.Popen[bytes]
    attempts_before: set[str]
    leftovers_before: set[str]

    @property
    def attempt(self) -> Path | None:
        """The folder of this attempt, once there is one."""
        new = sorted(_names(self.run / "attempts") - self.attempts_before)
        return self.run / "attempts" / new[0] if new else None

    @property
    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    @property
    def last_step(self) -> int:
        """The last step that this attempt has logged; 0 when there is none."""
        steps = re.findall(r"^step +(\d+)/\d+  epoch", self.said, re.MULTILINE)
        return int(steps[-1]) if steps else 0

    def rank(self, number: int) -> psutil.Process | None:
        """Return the process of a rank, once it is there."""
        folder = self.attempt
        record = read_record(folder / f"rank-{number}.json") if folder is not None else None
        return None if record is None else _process(record.pid)

    def ranks(self) -> list[psutil.Process]:
        return [rank for rank in map(self.rank, range(RANKS)) if rank is not None]

    def engine(self) -> psutil.Process | None:
        """Return the child of the launcher: an engine, or who prepares."""
        launcher = _process(self.process.pid)
        children = launcher.children() if launcher is not None else []
        return children[0] if children else None

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Return as soon as `condition` is true, while the launcher lives."""
        while not condition():
            try:
                self.process.wait(timeout=LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"ended with {self.process.returncode} before {what}: {self.tail}")

    def lives_for(self, seconds: float) -> bool:
        """Return after this time, or at once when the launcher has ended: then false."""
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def end(self) -> int:
        """Return the exit code of the launcher, once it has ended."""
        return self.process.wait(timeout=PATIENCE_SECONDS)

    @property
    def tail(self) -> str:
        return self.said[-3000:]

    def is_writing(self) -> bool:
        """Whether a checkpoint is being written, or deleted."""
        names = _names(self.run / "checkpoints") - self.leftovers_before
        return any(name.endswith((".partial", ".pruned")) for name in names)

    def new_leftovers(self) -> list[str]:
        """Return what this attempt has left behind; what a killed one left goes with the next."""
        return [
            name for name in leftovers(self.run) if PurePath(name).name not in self.leftovers_before
        ]

    def processes(self) -> list[psutil.Process]:
        """Everything alive that any attempt of this run has started, wherever it went."""
        found = []
        for process in psutil.process_iter():
            try:
                attempt = process.environ().get(VARIABLE, "")
                if attempt.startswith(f"{self.run}/") and _lives(process):
                    found.append(process)
            except psutil.Error:
                continue
        return found


def start(config: Path, run: Path, engine: str, *arguments: str) -> LiveRun:
    """Start `rankzero train CONFIG` with the run directory `run`."""
    before = _names(run / "attempts"), _names(run / "checkpoints")
    output = run.with_name(f"{run.name}.{len(list(run.parent.glob('*.said')))}.said")
    processes = "1" if engine == "python" else str(RANKS)
    options = ["--engine", engine, "--processes", processes, "--set", f"output_dir={run}"]
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "launcher", "train", str(config), *options, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        )
    return LiveRun(run, output, process, *before)


def train(config: Path, run: Path, engine: str, *arguments: str) -> LiveRun:
    """Train to the end, without anybody interfering."""
    finished = start(config, run, engine, *arguments)
    assert finished.process.wait(timeout=LONG_SECONDS) == 0, finished.tail
    return finished


Start = Callable[..., LiveRun]


@contextmanager
def ending_all() -> Iterator[Start]:
    """Start runs; what a failed test leaves of them is ended."""
    started: list[LiveRun] = []

    def begin(*arguments: Any) -> LiveRun:
        started.append(start(*arguments))
        return started[-1]

    try:
        yield begin
    finally:
        for each in started:
            each.process.kill()
            each.process.wait()
            send(each.processes(), signal.SIGKILL)


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Signal processes at once; one that has just ended gets none."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            continue


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint; every one listed must be whole."""
    folder = run / "checkpoints"
    problems = {c.path.name: find_problem(c.path) for c in list_checkpoints(folder)}
    assert not any(problems.values()), problems
    found = newest_valid(folder).found
    return 0 if found is None else found.step


def leftovers(run: Path) -> list[str]:
    """Return what should not be left in a run that has ended in order."""
    hidden = [path for path in run.rglob(".*") if not path.name.endswith(".crc")]
    return sorted(str(path.relative_to(run)) for path in hidden)


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return set()


def _process(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        return process if _lives(process) else None
    except psutil.Error:
        return None


def _lives(process: psutil.Process) -> bool:
    return process.status() != psutil.STATUS_ZOMBIE
