"""An engine's stdin, which says that the launcher lives, and its stdout and stderr."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from launcher.terminal_log import TerminalLog, pass_on


class Streams:
    """The pipes between the launcher and an engine. Its output is passed on and logged."""

    def __init__(self, log: Path) -> None:
        self._log = TerminalLog(log)
        self._stdin, self._lifeline = os.pipe()
        self._outputs = {target: os.pipe() for target in (1, 2)}
        self._theirs = [self._stdin, *(write for _, write in self._outputs.values())]
        self._copies: list[threading.Thread] = []

    def for_child(self) -> tuple[int, int, int]:
        """Return the child's stdin, stdout and stderr."""
        return self._stdin, self._outputs[1][1], self._outputs[2][1]

    def pass_on(self) -> None:
        """Let go of the child's ends, once it has them, and copy what it says from now on."""
        self._close_theirs()
        self._copies = [
            pass_on(read, target, self._log) for target, (read, _) in self._outputs.items()
        ]

    def close(self) -> None:
        """Let go of the lifeline and wait for the last words."""
        self._close_theirs()
        os.close(self._lifeline)
        for copy in self._copies:
            copy.join()
        self._log.close()

    def _close_theirs(self) -> None:
        while self._theirs:
            os.close(self._theirs.pop())
