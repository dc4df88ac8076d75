"""The ranks of an attempt while it runs: who lives, who is gone, and when that is the end."""

from __future__ import annotations

import time

import psutil

from launcher.attempt import Attempt
from launcher.diagnosis import RankEnd
from trainer.attempt import RankRecord
from trainer.errors import PeerLost
from trainer.run_directory import find_process

FAILURE_GRACE_SECONDS = 5.0
"""Between a rank's death and ours to act: gloo tells the others at once, torchrun polls ten times a
second, DeepSpeed's launcher once. NCCL would let them wait for ten minutes."""


class RankWatch:
    """What is known of the ranks of this machine."""

    def __init__(self, attempt: Attempt, *, save_seconds: float) -> None:
        self.attempt = attempt
        self.save_seconds = save_seconds
        self._last_seen: dict[int, float] = {}
        self._ended_here: set[int] = set()
        self._lost_at: float | None = None
        self._left_at: float | None = None

    def alive(self) -> list[psutil.Process]:
        """Return the processes of the ranks that live."""
        return [process for _, process in self._look() if process is not None]

    def are_all_here(self) -> bool:
        """Whether every rank of this machine lives and can be asked by itself."""
        ranks = self._look()
        living = [record for record, process in ranks if process is not None]
        return bool(living) and len(living) >= living[0].local_world_size

    def is_lost(self) -> bool:
        """Whether the run cannot complete any more and has had the time to end by itself."""
        now = time.monotonic()
        ranks = self._look()
        has_left = any(
            record.state == "interrupted" and process is None for record, process in ranks
        )
        has_failed = any(
            # A rank that left on request is lost to its peers; one of them may still be saving.
            (record.state == "failed" and not (has_left and record.error == PeerLost.__name__))
            or (record.state == "running" and process is None)
            for record, process in ranks
        )
        if has_failed and self._lost_at is None:
            self._lost_at = now + FAILURE_GRACE_SECONDS
        if has_left and self._left_at is None:
            self._left_at = now + self.save_seconds  # the others were asked too, and may be saving
        return any(at is not None and now >= at for at in (self._lost_at, self._left_at))

    def end_begins(self) -> None:
        """Remember who lives: what happens to them from now on is the launcher's doing."""
        for record, process in self._look():
            if process is not None:
                self._ended_here.add(record.rank)

    def ends(self, exit_codes: dict[int | None, int]) -> list[RankEnd]:
        """Return how each rank ended. `exit_codes`: by pid; under None, of the first one to end."""
        self._look()
        records = self.attempt.records()
        silent = [
            record.rank
            for record in records
            if record.state == "running" and record.rank not in self._ended_here
        ]
        first = min(silent, key=self._last_seen.__getitem__, default=None)
        return [
            RankEnd(
                record,
                last_seen=self._last_seen[record.rank],
                exit_code=exit_codes.get(
                    record.pid, exit_codes.get(None) if record.rank == first else None
                ),
                was_ended_here=record.rank in self._ended_here,
            )
            for record in records
        ]

    def _look(self) -> list[tuple[RankRecord, psutil.Process | None]]:
        ranks = []
        for known in self.attempt.records():
            process = find_process(known.pid, known.created)
            if process is not None:
                self._last_seen[known.rank] = time.time()
            else:
                self._last_seen.setdefault(known.rank, known.created)
            # One that is gone may have written its last word between the two looks.
            record = known if process is not None else self.attempt.record(known.rank) or known
            ranks.append((record, process))
        return ranks
