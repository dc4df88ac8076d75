"""What one node of a run prints, across all pods it had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from launcher.kubernetes.client.api import Api
from launcher.kubernetes.client.log_lines import LogLines
from launcher.kubernetes.client.observe import PodState, RunState
from launcher.kubernetes.client.refusal import Refusal
from launcher.kubernetes.manifests.pod import CONTAINER

_OVER = ("complete", "stopped", "failed")


@dataclass
class NodeLog:
    """Follows the log of one node."""

    api: Api
    node: int = 0
    write: Callable[[str], None] = print
    skipped: set[str] = field(default_factory=set)
    """Pods, by uid, whose log is not wanted or has been read to its end."""
    unread: dict[str, str] = field(default_factory=dict)
    """Pods, by name, whose log could not be read when it was last tried, and why."""
    _lines: dict[str, LogLines] = field(default_factory=dict)

    def skip_earlier(self, state: RunState | None) -> None:
        """Begin with the newest pod."""
        if state is not None:
            self.skipped |= {pod.uid for pod in self._pods(state)[:-1]}

    def read(self, state: RunState) -> None:
        """Write the lines that are new since the last time.

        `state` is older than what is read now: a pod it calls ended has written its last line.
        """
        for pod in self._pods(state):
            if pod.uid in self.skipped or not pod.has_log:
                continue
            is_over = pod.phase in _OVER
            lines = self._lines.setdefault(pod.uid, LogLines())
            piece = self._piece(pod, lines.since)
            for line in lines.take(piece, is_complete=is_over) if piece is not None else ():
                self.write(line)
            if is_over and piece is not None:
                self.skipped.add(pod.uid)

    def _piece(self, pod: PodState, since: str | None) -> str | None:
        try:
            piece = self.api.read_log(pod.name, CONTAINER, since=since)
        except Refusal as refusal:
            if refusal.answer.code == 403:
                raise
            # Not yet, or no longer: its machine is gone, or does not answer.
            self.unread[pod.name] = refusal.answer.message
            return None
        self.unread.pop(pod.name, None)
        return piece

    def _pods(self, state: RunState) -> list[PodState]:
        return [pod for pod in state.pods if pod.index == self.node]
