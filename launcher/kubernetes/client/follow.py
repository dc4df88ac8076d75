"""Wait for a run on a cluster, tell what it waits for, show what rank 0 prints, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from launcher.kubernetes.client.api import Api
from launcher.kubernetes.client.connection import Connection
from launcher.kubernetes.client.describe import describe
from launcher.kubernetes.client.node_log import NodeLog
from launcher.kubernetes.client.observe import RunState
from launcher.kubernetes.client.outcome import deleted, judge, never_pulled
from launcher.kubernetes.client.pace import Pace
from launcher.kubernetes.client.reading import read_state
from launcher.kubernetes.client.refusal import Unreachable
from trainer.errors import RankZeroError

Say = Callable[[str], None]
_LAST_LOOKS = 10
"""At the log of a run that is over, when the server does not answer."""


def follow(
    api: Api, kind: str, name: str, *, log: NodeLog, pace: Pace, say: Say
) -> RankZeroError | None:
    """Follow a run to its end and return the error it came to; None when it is complete.

    Raises: Unreachable when the connection stays lost; EnvironmentProblem.
    """
    looks, teller = _Looks(api, kind, name, pace, say), _Teller(say)
    uid: str | None = None
    waited = 0
    for state in looks:
        if state is None or uid not in (None, state.uid):
            return deleted(name)
        uid = state.uid
        teller.tell(state)
        looks.read_log(log, state)
        if state.is_over:
            for pod, why in log.unread.items():
                say(f"the end of the log of pod {pod} could not be read: {why}")
            return judge(state)
        pulling = [pod.wait for pod in state.current if pod.wait and pod.wait.category == "image"]
        waited = waited + 1 if pulling else 0
        if waited > pace.patience:
            return never_pulled(name, pulling[0].text)
    raise AssertionError("looks never end")


@contextmanager
def coming_back(name: str, connection: Connection, say: Say) -> Iterator[None]:
    """Whatever stops this command, the run goes on: say so, and how to see it again."""
    try:
        yield
    except (KeyboardInterrupt, RankZeroError):  # what the run itself came to is no exception here
        say(how_to_come_back(name, connection))
        raise


def how_to_come_back(name: str, connection: Connection) -> str:
    """Return the commands for a run that goes on by itself."""
    return "\n".join(
        (
            f"{name} goes on without this command.",
            f"  follow it: rankzero logs {name} {connection.options} --follow",
            f"  end it:    rankzero cancel {name} {connection.options}",
        )
    )


@dataclass
class _Looks:
    """States of a run, one after another, over a connection that may be lost for a while."""

    api: Api
    kind: str
    name: str
    pace: Pace
    say: Say
    failures: int = 0

    def __iter__(self) -> Iterator[RunState | None]:
        for _ in self.pace.looks():
            try:
                state = read_state(self.api, self.kind, self.name)
            except Unreachable as error:
                self._lost(error)
                continue
            if self.failures > 1:
                self.say("the connection is back")
            self.failures = 0
            yield state

    def read_log(self, log: NodeLog, state: RunState) -> None:
        """Read the log; once the run is over, with some patience, for there is no next time."""
        why = ""
        for _ in self.pace.looks(_LAST_LOOKS if state.is_over else 1):
            try:
                log.read(state)
            except Unreachable as error:
                why = error.what
            else:
                break
        else:
            if state.is_over:
                self.say(f"the end of the log could not be read: {why}")

    def _lost(self, error: Unreachable) -> None:
        """Say it once; a single request may well be lost.

        Raises: the error, once patience is over.
        """
        self.failures += 1
        if self.failures == 2:
            seconds = self.pace.patience * self.pace.poll_seconds
            self.say(f"{error.what}; trying again for {seconds:.0f} s, the run goes on")
        if self.failures > self.pace.patience:
            raise error


@dataclass
class _Teller:
    """Says what is new. What has been said once is not said again: reasons alternate."""

    say: Say
    phase: str = ""
    said: set[str] = field(default_factory=set)

    def tell(self, state: RunState) -> None:
        lines = describe(state)
        if state.phase == "queued" != self.phase:  # again, for Kueue may take a run back
            self.said -= set(lines)
        self.phase = state.phase
        for line in lines:
            if line not in self.said:
                self.said.add(line)
                self.say(f"{state.name}: {line}")
