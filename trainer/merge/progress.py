"""How far a merge is: a bar with bytes and time left on a terminal, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trainer.interruption import stop_if_requested


class MergeProgress:
    """The bars of one merge."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def phase(self, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Show one phase while active; yields a function that takes the bytes just done.

        That function also is where a request to stop is heeded.
        """
        known = (DownloadColumn(binary_units=True), TimeRemainingColumn(compact=True))
        bar = Progress(
            TextColumn(what),
            BarColumn(),
            *(known if total else (TimeElapsedColumn(),)),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        task = bar.add_task(what, total=total)

        def advance(num_bytes: int) -> None:
            stop_if_requested()
            bar.advance(task, num_bytes)

        with bar:
            yield advance
