"""A request to stop (SIGTERM, SIGHUP), from the signal to a place where stopping is safe.

At most times the request is an exception, so that every `finally` runs. Python loses an exception
raised where it cannot be passed on (a hook of `os.fork`, a destructor), so the request is also
remembered, and long loops ask for it with `stop_if_requested`. Between `defer` and `allow` asking
is the only way: a training step is not torn apart.
"""

from __future__ import annotations

import signal
from types import FrameType

from trainer.errors import Interrupted

_request: signal.Signals | None = None
_is_deferred = False


def receive_requests() -> None:
    """Take SIGTERM and SIGHUP as requests to stop. Main thread only."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _receive)


def defer() -> None:
    """From now on a request waits until it is asked for."""
    global _is_deferred  # noqa: PLW0603  (signals belong to the process, and so does this)
    _is_deferred = True


def allow() -> None:
    """Let a request stop the process at once again, one that waits included.

    Raises: Interrupted.
    """
    global _is_deferred  # noqa: PLW0603
    _is_deferred = False
    stop_if_requested()


def stop_if_requested() -> None:
    """Raises: Interrupted when a request came in."""
    if _request is not None:
        raise Interrupted(f"stopped by {_request.name}")


def is_requested() -> bool:
    """Whether this process was asked to stop."""
    return _request is not None


def _receive(number: int, _: FrameType | None) -> None:
    global _request
    is_first, _request = _request is None, signal.Signals(number)
    if is_first and not _is_deferred:
        stop_if_requested()
