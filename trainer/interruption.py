"""A request to stop (SIGTERM, SIGHUP, Ctrl-C), from the signal to a place where stopping is safe.

At most times the request is an exception, so that every `finally` runs. Python loses an exception
raised where it cannot be passed on (a hook of `os.fork`, a destructor), so the request is also
remembered, and long loops ask for it with `stop_if_requested`. Between `defer` and `allow` asking
is the only way, because all ranks stop together (`trainer.agreement`); a second request stops this
process at once all the same.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.errors import Interrupted, RankZeroError

_REQUESTS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_SAME_REQUEST_SECONDS = 1.0
"""One request may come as several signals: Ctrl-C reaches a rank from the terminal and from
torchrun, a closed terminal sends two."""
_request: signal.Signals | None = None
_requested_at = 0.0
_is_deferred = False


def receive_requests() -> None:
    """Take signals as requests to stop, but those that were ignored (`nohup`). Main thread only."""
    for number in _REQUESTS:
        if signal.getsignal(number) != signal.SIG_IGN:
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


@contextmanager
def telling_requests() -> Iterator[None]:
    """Let a request that came out of the block as another error come out as what it is.

    Importing transformers turns any error into a ModuleNotFoundError, for one.
    Raises: Interrupted, KeyboardInterrupt.
    """
    try:
        yield
    except (RankZeroError, SystemExit):
        raise
    except BaseException as error:
        if _request is None:
            raise
        if _request == signal.SIGINT:
            raise KeyboardInterrupt from error
        raise Interrupted(f"stopped by {_request.name}") from error


def requested() -> signal.Signals | None:
    """Return the signal that asked this process to stop, if one did."""
    return _request


def leave_to_parent(_: int = 0) -> None:
    """Let this process, a data worker, end by its parent's SIGTERM, and nobody else's. Linux.

    A request may reach every process of a run at once (systemd, `scancel --full`), and the rank
    still needs its workers to come to a place where it can stop. Torch's handler lets a worker die
    of any SIGTERM but its parent's, and the rank of that.
    Source: torch/csrc/DataLoader.cpp (handler_SIGTERM), torch 2.13.
    """
    if sys.platform != "linux":
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)


def _receive(number: int, _: FrameType | None) -> None:
    global _request, _requested_at
    if _request is not None:
        if time.monotonic() - _requested_at < _SAME_REQUEST_SECONDS:
            return
        raise Interrupted(f"stopped at once by a second {signal.Signals(number).name}")
    _request, _requested_at = signal.Signals(number), time.monotonic()
    if _is_deferred:
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    stop_if_requested()
