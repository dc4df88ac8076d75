"""Writes checkpoints beside the training: one job at a time, its error raised where it is awaited.

A process that ends does not wait for the job. What is half written then is never taken for a
checkpoint (`commit`), so only `wait` is needed before an end that should keep the last one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class _Job:
    def __init__(self, run: Callable[[], None]) -> None:
        self._run = run
        self._claim = threading.Lock()
        self.done = threading.Event()
        self.error: BaseException | None = None

    def claim(self) -> bool:
        """Whether this caller, the first one, decides over the job."""
        return self._claim.acquire(blocking=False)

    def execute(self) -> None:
        if not self.claim():
            return
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001  (raised where the job is awaited)
            self.error = error
        finally:
            self.done.set()


class BackgroundWriter:
    """Runs one job at a time in a daemon thread. Used by one thread, the main one.

    An exception in that thread (Ctrl-C) may leave any method at any point: the job in flight goes
    on and can be awaited again.
    """

    def __init__(self) -> None:
        self._job: _Job | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Start a job, once the one before has ended.

        Raises: the error of the one before; the new job is then not started.
        """
        self.wait()
        started = _Job(job)
        try:
            self._job = started
            threading.Thread(target=started.execute, name="checkpoint", daemon=True).start()
        except BaseException:
            if started.claim():  # its thread did not begin it, and now never will
                self._job = None
            raise

    def check(self) -> None:
        """Raises: the error of a job that has ended. Never waits."""
        if self._job is not None and self._job.done.is_set():
            self.wait()

    def wait(self) -> None:
        """Wait for the job in flight, if any.

        Raises: its error.
        """
        job = self._job
        if job is None:
            return
        job.done.wait()
        self._job = None
        if job.error is not None:
            raise job.error
