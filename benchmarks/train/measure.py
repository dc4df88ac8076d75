"""One profile from rows to figures: parity, the peers' best settings, then rounds in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.train import figures
from benchmarks.train.processes import Process, WorkerFailed
from benchmarks.train.search import best_trial, next_trial
from benchmarks.train.setup import Setup
from benchmarks.train.ways import OURS, WAYS, Choice, Way, training_bytes

_REFERENCE = "trainer-padded"  # any way of the plain libraries: its worker computes the reference
_MEMORY_SHARE = 0.5  # of what is free, for one trial


@dataclass(frozen=True)
class Lab:
    """Where and how workers run."""

    pythons: Mapping[str, str]
    """Interpreter of each library."""
    threads: int
    rounds: int
    model: Mapping[str, Any]
    """The model's config.json."""

    def worker(self, setup: Setup, way: str) -> Process:
        path = Path(setup.folder) / "setup.json"
        python = self.pythons[WAYS[way].library]
        return Process(python, path, way, threads=self.threads)


@dataclass
class Record:
    """What is known of one way."""

    way: str
    problem: str | None = None
    choice: dict[str, Any] | None = None
    trials: dict[str, float | None] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    is_equal: bool | None = None
    """Loss and gradients of the same examples are those of plain PEFT."""
    versions: dict[str, str] = field(default_factory=dict)
    dtypes: list[str] = field(default_factory=list)
    start_seconds: float | None = None
    warm_up: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    tokens: int = 0
    """Useful tokens of a round."""
    peak_bytes: int = 0
    children_bytes: int = 0

    def take(self, answer: Mapping[str, Any]) -> None:
        self.tokens = answer["tokens"]
        self.peak_bytes = answer["peak_bytes"]
        self.children_bytes = max(self.children_bytes, answer["children_bytes"])


def measure(lab: Lab, setup: Setup, ways: Sequence[str]) -> dict[str, Any]:
    """Measure one profile. The load of the machine is taken before the first round."""
    with lab.worker(setup, _REFERENCE) as worker:
        noise = worker.ask("reference")
    print(f"  plain PEFT in bf16 differs from float32 by {noise['gradients']:.2%}", flush=True)
    records = [Record(name) for name in ways]
    for record in records:
        with _noting(record):
            prepare_way(lab, setup, record, noise, records)
        print(f"  {_prepared_line(record)}", flush=True)
    load = os.getloadavg()[0]
    run_in_turns(lab, setup, [record for record in records if record.problem is None])
    return {
        "noise": noise,
        "allowed": figures.allowed(noise),
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "ways": [dataclasses.asdict(record) for record in records],
    }


def prepare_way(
    lab: Lab,
    setup: Setup,
    record: Record,
    noise: Mapping[str, float],
    others: Sequence[Record],
) -> None:
    """Find a peer's best settings, and compare its step. Raises: WorkerFailed."""
    way = WAYS[record.way]
    known = [other.choice for other in others if other.way == way.settings_of and other.choice]
    if known:
        record.choice = known[0]
    elif record.way != OURS:
        record.choice = dataclasses.asdict(find_choice(lab, setup, way, record))
    with lab.worker(setup, record.way) as worker:
        record.versions = worker.versions
        record.parity = worker.ask("parity", record.choice)
    if "problem" in record.parity:
        raise WorkerFailed(record.parity["problem"])
    record.is_equal = figures.is_equal(record.parity, noise)


def find_choice(lab: Lab, setup: Setup, way: Way, record: Record) -> Choice:
    """Try attention and batches on one step's rows. Raises: WorkerFailed when none runs."""
    tried: dict[Choice, float | None] = {}
    limit = _MEMORY_SHARE * psutil.virtual_memory().available
    problem, is_done = "nothing fits the memory", False
    while not is_done:  # a new worker after one that ended over a trial
        with lab.worker(setup, way.name) as worker:
            is_warm = False
            while (choice := next_trial(tried, setup.rows.units_of_step(way))) is not None:
                if training_bytes(way, choice, setup.rows, lab.model) > limit:
                    tried[choice] = None
                    continue
                settings = dataclasses.asdict(choice)
                try:
                    if not is_warm:
                        worker.ask("step", settings)
                        is_warm = True
                    tried[choice] = worker.ask("step", settings)["seconds"]
                except WorkerFailed as failure:
                    tried[choice], problem = None, str(failure)
                    break
            is_done = choice is None
    record.trials = {str(choice): seconds for choice, seconds in tried.items()}
    best = best_trial(tried)
    if best is None:
        raise WorkerFailed(problem)
    return best


def run_in_turns(lab: Lab, setup: Setup, records: Sequence[Record]) -> None:
    """Start every way, warm each up, then let one after another run a round, again and again.

    Each round begins with another way, so that none always follows the same one.
    """
    with contextlib.ExitStack() as stack:
        workers: dict[str, Process] = {}
        for record in records:
            with _noting(record):
                worker = stack.enter_context(lab.worker(setup, record.way))
                ready = worker.ask("train", record.choice)
                record.start_seconds, record.dtypes = ready["start_seconds"], ready["dtypes"]
                while not figures.is_warm(record.warm_up):
                    record.warm_up.append(_round(worker, record))
                workers[record.way] = worker
                times = ", ".join(f"{seconds:.1f}" for seconds in record.warm_up)
                print(f"  {record.way}: warm-up rounds {times} s", flush=True)
        for number in range(lab.rounds):
            first = number % max(1, len(records))
            for record in (*records[first:], *records[:first]):
                if record.problem is None:
                    with _noting(record):
                        record.rounds.append(_round(workers[record.way], record))
            print(f"  round {number + 1} of {lab.rounds}", flush=True)


def _round(worker: Process, record: Record) -> float:
    answer = worker.ask("round")
    record.take(answer)
    seconds: float = answer["seconds"]
    return seconds


@contextlib.contextmanager
def _noting(record: Record) -> Any:
    """Keep a way's failure as its problem; the others go on."""
    try:
        yield
    except WorkerFailed as failure:
        record.problem = str(failure)
        print(f"  {record.way}: {failure}", flush=True)


def _prepared_line(record: Record) -> str:
    if record.problem is not None:
        return f"{record.way}: left out"
    choice = Choice(**record.choice) if record.choice else "its own plan"
    verdict = "equal" if record.is_equal else "NOT equal"
    off = record.parity
    return (
        f"{record.way}: {choice}; loss off by {off['loss']:.3%}, "
        f"gradients by {off['gradients']:.2%} (worst {off['worst']:.2%}): {verdict}"
    )
