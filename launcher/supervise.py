"""Start a process, pass signals on to it, wait, and say how it ended. Correct as PID 1."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from trainer.errors import EnvironmentProblem, Interrupted, TrainingFailed

# A closed terminal (SIGHUP) reaches the child as the request to save and stop that it is.
_PASSED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGTERM,
}


def supervise(command: Sequence[str], *, is_interactive: bool = False) -> int:
    """Run a command to its end and return its exit code.

    The child gets a session of its own, so that Ctrl-C reaches it once, from here. An interactive
    one stays on the terminal, where it gets Ctrl-C by itself.

    Raises: Interrupted when it died of a signal passed on to it, TrainingFailed of another one.
    """
    supervisor = _Supervisor(passes_interrupt=not is_interactive)
    with supervisor.receiving_signals():
        try:
            child = subprocess.Popen(command, start_new_session=not is_interactive)
        except OSError as error:
            raise EnvironmentProblem(
                f"{command[0]} cannot be started: {error.strerror}",
                rule="a run is carried out by its own process",
                fix="check that this file exists and may be executed",
            ) from None
        supervisor.pass_on_to(child)
        code = _wait_as_init(child) if os.getpid() == 1 else child.wait()
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    if -code in supervisor.sent:
        raise Interrupted(
            f"stopped by {name}",
        )
    raise TrainingFailed(
        f"`{' '.join(command[1:3])}` was killed by {name}",
        rule="a process ends by itself",
        fix=_REMEDIES.get(name, "see the last lines above for what it was doing"),
    )


_REMEDIES = {
    "SIGKILL": "most often the machine ran out of memory: lower data.max_length or the batch size",
    "SIGSEGV": "a native library crashed: compare its version with the pinned ones",
    "SIGBUS": "shared memory is too small (/dev/shm): enlarge it, or set dataloader_workers to 0",
}


class _Supervisor:
    def __init__(self, *, passes_interrupt: bool) -> None:
        self.passes_interrupt = passes_interrupt
        self.child: subprocess.Popen[bytes] | None = None
        self.waiting: list[signal.Signals] = []
        self.sent: set[int] = set()

    @contextmanager
    def receiving_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._receive) for number in _PASSED_ON}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def pass_on_to(self, child: subprocess.Popen[bytes]) -> None:
        """Send what came in before the child was there, and from now on at once."""
        self.child = child
        while self.waiting:
            self._send(child, self.waiting.pop(0))

    def _receive(self, number: int, _: FrameType | None) -> None:
        passed = _PASSED_ON[signal.Signals(number)]
        if number == signal.SIGINT and not self.passes_interrupt:
            self.sent.add(passed)  # the terminal has sent it to the child already
        elif self.child is None:
            self.waiting.append(passed)
        else:
            self._send(self.child, passed)

    def _send(self, child: subprocess.Popen[bytes], number: signal.Signals) -> None:
        self.sent.add(number)
        # Not child.send_signal: it may reap the child here, in the middle of waiting for it.
        if child.returncode is None:
            os.kill(child.pid, number)


def _wait_as_init(child: subprocess.Popen[bytes]) -> int:
    """Wait for the child and reap every orphan on the way, which is the duty of PID 1."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child.pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode
