"""One attempt of a run: its folder, and what the ranks of this machine left in it."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from trainer.attempt import RankRecord, log_path, read_record, record_path
from trainer.errors import EnvironmentProblem
from trainer.run_directory import RunDirectory


@dataclass(frozen=True)
class Attempt:
    """A folder that one launcher owns: `rank-K.json` and `rank-K.log` for each of its ranks."""

    run: RunDirectory
    folder: Path

    @classmethod
    def create(cls, run: Path, *, node_rank: int | None = None) -> Attempt:
        """Make the next free `attempts/NNN`, or `attempts/NNN-node-K` where each node has its own.

        Raises: EnvironmentProblem when it cannot be written.
        """
        suffix = "" if node_rank is None else f"-node-{node_rank}"
        parent = run / "attempts"
        number = 1
        try:
            parent.mkdir(parents=True, exist_ok=True)
            while True:
                folder = parent / f"{number:03d}{suffix}"
                try:
                    folder.mkdir()
                except FileExistsError:
                    number += 1
                else:
                    return cls(RunDirectory(run), folder)
        except OSError as error:
            raise EnvironmentProblem(
                f"{parent} cannot be written: {error.strerror}",
                rule="each attempt keeps the logs of its ranks in the run directory",
                fix="free space, change the permissions, or choose another output_dir",
            ) from None

    def records(self) -> list[RankRecord]:
        """Read what the ranks of this machine say, in the order of ranks."""
        found = (read_record(path) for path in self.folder.glob("rank-*.json"))
        host = socket.gethostname()
        mine = (record for record in found if record is not None and record.host == host)
        return sorted(mine, key=lambda record: record.rank)

    def record(self, rank: int) -> RankRecord | None:
        return read_record(record_path(self.folder, rank))

    def log(self, rank: int) -> Path:
        return log_path(self.folder, rank)

    def last_text(self, rank: int, *, num_bytes: int = 20_000) -> str:
        """Return the end of a rank's log; empty when there is none."""
        try:
            with self.log(rank).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - num_bytes))
                return file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
