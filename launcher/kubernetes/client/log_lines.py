"""A container's log read in pieces: no line twice, none lost. PURE.

Each piece is asked for from a second on, for the API knows no finer time, so that pieces overlap.
Lines carry timestamps; those of the overlap are known by them and by their text.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

_OVERLAP = timedelta(seconds=1)
"""stdout and stderr are stamped each by itself: a line may be older than the one before it."""


@dataclass
class LogLines:
    """What has been read so far of one container's log."""

    since: str | None = None
    """Where the next piece is to begin; None: at the beginning."""
    _seen: Counter[str] = field(default_factory=Counter)
    """Lines from `since` on."""

    def take(self, piece: str, *, is_complete: bool) -> list[str]:
        """Return the new lines of a piece, without their timestamps.

        `is_complete`: the container has ended. Before, a last line without its end is left for
        the next time.
        """
        lines = piece.split("\n")
        unfinished = lines.pop()
        if is_complete and unfinished:
            lines.append(unfinished)
        before, new = Counter(self._seen), []
        for line in lines:
            if before[line]:
                before[line] -= 1
            else:
                new.append(line)
        self._remember(lines)
        return [line.partition(" ")[2] for line in new]

    def _remember(self, lines: list[str]) -> None:
        stamps = [line.partition(" ")[0] for line in lines]
        last = max((stamp for stamp in stamps if _second(stamp)), default=None)
        moment = _second(last) if last else None
        if moment is None:
            return
        begin = (moment - _OVERLAP).strftime("%Y-%m-%dT%H:%M:%SZ")
        # Compared without the Z: "...05.1Z" is later than "...05Z".
        self._seen = Counter(
            line
            for line, stamp in zip(lines, stamps, strict=True)
            if not _second(stamp) or stamp.rstrip("Z") >= begin.rstrip("Z")
        )
        self.since = begin


def _second(stamp: str) -> datetime | None:
    """Read a timestamp to the second; the API writes nanoseconds, in UTC."""
    try:
        return datetime.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S")
    except ValueError:
        return None
