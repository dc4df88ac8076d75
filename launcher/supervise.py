"""Run a command to its end, whatever dies: pass signals on, watch the ranks, leave no process."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import click
import psutil

from launcher.attempt import Attempt
from launcher.diagnosis import REMEDIES, Evidence, exit_codes_in, interrupted_by, signal_name
from launcher.grace import LEAST_SECONDS
from launcher.process_tree import (
    adopt_orphans,
    below,
    count_oom_kills,
    ends_with_this_process,
    living,
    reap,
    send,
)
from launcher.rank_watch import RankWatch
from launcher.streams import Streams
from launcher.terminal_log import terminal_environment
from launcher.verdict import conclude
from trainer.attempt import VARIABLE
from trainer.errors import EnvironmentProblem, TrainingFailed

POLL_SECONDS = 0.2
KILL_GRACE_SECONDS = 5.0
"""From SIGTERM to SIGKILL once the run is lost, or asked to stop a second time: enough to write a
record, not to save."""
ENGINE_SECONDS = 5.0
"""What an engine gets after its ranks were killed, to see it and print their exit codes."""
_SAME_REQUEST_SECONDS = 1.0
"""A closed terminal sends several signals; within this time they are one request."""
# A closed terminal (SIGHUP) reaches the ranks as the request to save and stop that it is.
_PASSED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGTERM,
}


def supervise(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    attempt: Attempt | None = None,
    is_interactive: bool = False,
    starts_deaf: bool = False,
    save_seconds: float = LEAST_SECONDS,
    how_to_go_on: str = "",
) -> int:
    """Run a command to its end and return its exit code.

    The child gets a session of its own, so that Ctrl-C reaches it once, from here. An interactive
    one stays on the terminal, where it gets Ctrl-C by itself. One that `starts_deaf` hears Ctrl-C
    once it asks to (`trainer.entry.run_entry`): before that Python answers with a traceback.
    `environment` is added to ours.
    With an attempt the command is an engine of a run: its ranks are watched, they get
    `save_seconds` once one has stopped on request, and what the run came to is raised as the error
    of the rank that caused it. `how_to_go_on`: the fix of a run that was stopped.

    Raises: Interrupted when it ended on a request to stop, TrainingFailed when a rank or the
    command died; with an attempt any RankZeroError. Main thread only.
    """
    with _receiving_signals() as wake:
        oom_kills = count_oom_kills()
        status_before = attempt.run.read_status() if attempt is not None else {}
        ranks = None if attempt is None else RankWatch(attempt, save_seconds=save_seconds)
        with _deaf() if starts_deaf else nullcontext():
            supervisor = _Supervisor(command, environment or {}, ranks, is_interactive)
        try:
            code = supervisor.run(wake)
        finally:
            supervisor.close()
    if attempt is not None and ranks is not None:
        evidence = Evidence(
            engine=" ".join(command[1:3]),
            engine_code=code,
            requests=tuple(supervisor.requests),
            was_oom=count_oom_kills() > oom_kills,
            how_to_go_on=how_to_go_on,
        )
        pids = [record.pid for record in attempt.records()]
        codes = exit_codes_in(attempt.last_text(0), pids) | {supervisor.engine.pid: code}
        return conclude(attempt, ranks.ends(codes), evidence, status_before=status_before)
    if code >= 0:
        return code
    if -code in supervisor.sent:
        raise interrupted_by(signal.Signals(-code))
    name = signal_name(-code)
    raise TrainingFailed(
        f"`{' '.join(command[1:3])}` was killed by {name}",
        rule="a process ends by itself",
        fix=REMEDIES.get(name, "see the last lines above for what it was doing"),
    )


@contextmanager
def _deaf() -> Iterator[None]:
    """Block Ctrl-C; a child that is started now begins with it blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Supervisor:
    """One running command and everything below it."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        ranks: RankWatch | None,
        is_interactive: bool,
    ) -> None:
        self.is_interactive = is_interactive
        self.requests: list[signal.Signals] = []
        self.sent: set[int] = set()
        self.asked: set[int] = set()
        self.last_request = float("-inf")
        self.kill_at: float | None = None
        self.before = {process.pid for process in below(psutil.Process())}
        adopt_orphans()
        self.ranks = ranks
        self.streams = None if ranks is None else Streams(ranks.attempt.log(0))
        self.engine = self._start(command, environment)

    def _start(
        self, command: Sequence[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        inherited = {**os.environ, **environment}
        stdin = stdout = stderr = None
        if self.ranks is not None and self.streams is not None:
            folder = self.ranks.attempt.folder
            inherited |= terminal_environment(inherited)
            inherited |= {VARIABLE: str(folder.absolute()), "PYTHONUNBUFFERED": "1"}
            stdin, stdout, stderr = self.streams.for_child()
        try:
            engine = subprocess.Popen(
                command,
                env=inherited,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=not self.is_interactive,
                preexec_fn=ends_with_this_process(),  # noqa: PLW1509  (no thread of ours exists yet)
            )
        except OSError as error:
            self.close()
            raise EnvironmentProblem(
                f"{command[0]} cannot be started: {error.strerror}",
                rule="a run is carried out by its own process",
                fix="check that this file exists and may be executed",
            ) from None
        if self.streams is not None:
            self.streams.pass_on()
        return engine

    def run(self, wake: int) -> int:
        """Return the engine's exit code once nothing is left below this process."""
        while True:
            for number in _signals_within(wake, POLL_SECONDS):
                self._request(number)
            code = reap().get(self.engine.pid)
            if code is not None:
                self.engine.returncode = code
            is_over = self.engine.returncode is not None
            if (is_over or self.kill_at is not None) and self._end_the_rest():
                break
            if self.kill_at is None and self.ranks is not None and self.ranks.is_lost():
                self._begin_to_end(KILL_GRACE_SECONDS)
        reap()
        assert self.engine.returncode is not None
        return self.engine.returncode

    def _request(self, number: signal.Signals) -> None:
        """Pass a request to stop on; the second kills soon, the third at once."""
        now = time.monotonic()
        if now - self.last_request < _SAME_REQUEST_SECONDS:
            return
        self.last_request = now
        passed = _PASSED_ON[number]
        self.sent.add(passed)
        if number == signal.SIGINT and self.is_interactive:
            return  # the terminal has sent it to the child already
        self.requests.append(number)
        if len(self.requests) > 2:
            self.kill_at = now - ENGINE_SECONDS
            return
        ranks = self.ranks.alive() if self.ranks is not None else []
        send(ranks, passed)
        self.asked.update(rank.pid for rank in ranks)
        # An engine that is asked starts to count: torchrun kills its workers 30 s later, DeepSpeed
        # one after the other. It sees them end anyway, so while they save it is left in peace.
        is_first = len(self.requests) == 1
        if is_first and ranks and sys.stderr.isatty():  # a step and a save may take a minute
            click.echo("\nstopping once what was learned is saved; again stops at once", err=True)
        is_left_alone = is_first and self.ranks is not None and self.ranks.are_all_here()
        if not is_left_alone and self.engine.pid not in self.asked:
            self._signal_engine(passed)
        if not is_first:
            self._end_soon(now + KILL_GRACE_SECONDS)

    def _end_soon(self, kill_at: float) -> None:
        """Leave a little time to end, and no more: a rank in a collective hears no signal."""
        self.kill_at = kill_at if self.kill_at is None else min(self.kill_at, kill_at)
        if self.ranks is not None:
            self.ranks.end_begins()

    def _signal_engine(self, number: signal.Signals) -> None:
        # Not Popen.send_signal: it may reap the child by itself.
        if self.engine.returncode is None:
            os.kill(self.engine.pid, number)

    def _begin_to_end(self, grace_seconds: float) -> None:
        """Ask what is left to stop; with its engine alive, the ranks alone, so that it reports."""
        self.kill_at = time.monotonic() + grace_seconds
        asked = self._worth_asking()
        if self.ranks is not None:
            self.ranks.end_begins()
            if self.engine.returncode is None:
                asked = self.ranks.alive()
        # One that was asked may be saving, and a second request would stop it at once.
        send([each for each in asked if each.pid not in self.asked], signal.SIGTERM)

    def _end_the_rest(self) -> bool:
        """End what is left; true when nothing is."""
        rest = self._rest()
        if not rest:
            return self.engine.returncode is not None
        if self.kill_at is None:
            grace = KILL_GRACE_SECONDS
            if self.ranks is not None and self.requests:
                grace = self.ranks.save_seconds
            self._begin_to_end(grace)
        elif time.monotonic() >= self.kill_at:
            self._kill(rest, self.kill_at)
        return False

    def _kill(self, rest: list[psutil.Process], since: float) -> None:
        """Kill the ranks, and the engine too when it does not end of that."""
        if self.ranks is not None and self.engine.returncode is None:
            self.ranks.end_begins()
            if time.monotonic() < since + ENGINE_SECONDS:
                ranks = self.ranks.alive()
                rest = [*(p for rank in ranks for p in below(rank)), *ranks]
        send(rest, signal.SIGKILL)

    def _rest(self) -> list[psutil.Process]:
        """Everything alive that this supervisor brought into the world."""
        found = [p for p in below(psutil.Process()) if p.pid not in self.before]
        if self.ranks is not None:  # where orphans do not come to us
            found += [p for p in self.ranks.alive() if p not in found]
        return living(found)

    def _worth_asking(self) -> list[psutil.Process]:
        """Without what is below a rank: its data workers end with it, not while it saves."""
        ranks = self.ranks.alive() if self.ranks is not None else []
        helpers = {process.pid for rank in ranks for process in below(rank)}
        return [process for process in self._rest() if process.pid not in helpers]

    def close(self) -> None:
        adopt_orphans(False)
        if self.streams is not None:
            self.streams.close()


@contextmanager
def _receiving_signals() -> Iterator[int]:
    """Yield a descriptor that carries the number of each signal as it comes in.

    SIGCHLD is among them, so that the end of a child is known at once.
    """
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    # The interpreter writes the number; a handler must exist, and has nothing to do.
    wanted = [*_PASSED_ON, signal.SIGCHLD]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup: a closed terminal is no request
        wanted.remove(signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: None) for number in wanted}
    previous = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


def _signals_within(wake: int, seconds: float) -> list[signal.Signals]:
    """Wait for signals and return the requests to stop among them."""
    ready, _, _ = select.select([wake], [], [], seconds)
    numbers = os.read(wake, 1024) if ready else b""
    return [signal.Signals(number) for number in numbers if number in _PASSED_ON]
