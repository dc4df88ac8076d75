"""The place a merge is written to: what may stand there, and what takes its place."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer import interruption
from trainer.durable import sync
from trainer.errors import ConfigError, EnvironmentProblem
from trainer.merge.naming import listed
from trainer.merge.report import NOT_COUNTED, MergeReport, read_report


@dataclass(frozen=True)
class Output:
    """A place, and the whole merge that stands there, if one does."""

    path: Path
    done: MergeReport | None

    @classmethod
    def find(cls, path: Path) -> Output:
        """Look at a place; what an earlier merge was killed in the middle of is put right.

        Raises: ConfigError when something else than a whole merge is there.
        """
        place = Path(os.path.realpath(path))  # a link keeps leading to the disk it was made for
        with _explaining(place):
            _recover(place)
            is_taken = os.path.lexists(place)
        done = read_report(place) if is_taken else None
        if is_taken and done is None:
            raise ConfigError(
                f"{place} exists, and is no whole merge",
                rule="a merge overwrites nothing but an earlier merge (--replace)",
                fix="remove it, or choose another --output",
            )
        return cls(place, done)

    def check_replaceable(self, *, replace: bool) -> None:
        """Raises: ConfigError when another merge is there and may not go."""
        if self.done is None:
            return
        if not replace:
            raise ConfigError(
                f"{self.path} exists, and is another merge",
                rule="a merge never overwrites, unless it is told to",
                fix="give --replace, or choose another --output",
            )
        own = {*self.done.files, *NOT_COUNTED}
        foreign = [path.name for path in self.path.iterdir() if path.name not in own]
        if foreign:
            raise ConfigError(
                f"{self.path} holds more than a merge: {listed(foreign)}",
                rule="--replace removes what a merge has written, and nothing else",
                fix="move that elsewhere, or choose another --output",
            )

    def publish(self, folder: Path) -> None:
        """Give the finished folder its name, in place of the merge that was there at the start.

        A request to stop waits: without either of them nobody is to be left.
        Raises: OSError; ConfigError when something else is there by now.
        """
        interruption.defer()
        try:
            if self.done is not None and read_report(self.path) == self.done:
                self.check_replaceable(replace=True)
                self.path.rename(_earlier(self.path))
            elif os.path.lexists(self.path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.path))
            try:
                folder.rename(self.path)
            except OSError:
                with contextlib.suppress(OSError):
                    _recover(self.path)
                raise
            sync(self.path.parent)
            shutil.rmtree(_earlier(self.path), ignore_errors=True)
        finally:
            interruption.allow()


def check_disk(output: Path, needed: int) -> None:
    """Raises: EnvironmentProblem when fewer bytes are free where `output` will be."""
    with _explaining(output):
        existing = next(parent for parent in output.parents if parent.exists())
        free = shutil.disk_usage(existing).free
    if needed > free:
        raise EnvironmentProblem(
            f"merging needs {needed / 2**30:.1f} GiB on disk, {free / 2**30:.1f} GiB are free",
            rule="the merged model is written whole before it appears",
            fix=f"free space under {existing}, or choose another --output",
        )


def _earlier(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def _recover(path: Path) -> None:
    """Give a merge its name back that was set aside for one that never came; else remove it."""
    earlier = _earlier(path)
    if read_report(earlier) is None:
        return
    if os.path.lexists(path):
        shutil.rmtree(earlier, ignore_errors=True)
    else:
        earlier.rename(path)


@contextlib.contextmanager
def _explaining(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(
            f"{path} cannot be looked at: {error.strerror}",
            rule="the place of a merged model is one this user may read and write",
            fix="choose another --output, or change its permissions",
        ) from error
