"""What went wrong, told in this project's errors: out of memory, disk full, a lost peer."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import torch

from trainer.errors import (
    EnvironmentProblem,
    Interrupted,
    OutOfMemory,
    PeerLost,
    RankZeroError,
)
from trainer.interruption import requested


def explained(error: BaseException) -> BaseException:
    """Return the error to report for `error`; one we cannot explain comes back as it is."""
    if isinstance(error, RankZeroError):
        return error
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _NO_HOST_MEMORY in str(error):
        return OutOfMemory(
            f"out of memory: {_first_line(error)}",
            rule="weights, optimizer state and the activations of one micro-batch must fit",
            fix="lower training.max_tokens_per_device or data.max_length, turn on "
            "training.gradient_checkpointing, or set model.quantization: nf4",
        )
    refused = _refused_by_the_machine(error)
    if refused is not None:
        return refused
    if requested() is not None:
        # Another rank has stopped for the same request, and broke what this one was waiting for.
        return Interrupted("stopped on request, while working with another rank")
    if _is_lost_peer(error):
        return PeerLost(
            f"another rank went away: {_first_line(error)}",
            rule="every rank takes part in every step until the end",
            fix="look for the first error of another rank, in its log or on its node",
        )
    return error


_NO_HOST_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""Torch raises a bare RuntimeError for host memory. Source: c10/core/impl/alloc_cpu.cpp."""


def _refused_by_the_machine(error: BaseException) -> EnvironmentProblem | None:
    # torch.save reports a full disk as a RuntimeError raised on top of the real one.
    full = next((link for link in _causes(error) if _is_disk_full(link)), None)
    if full is not None:
        return EnvironmentProblem(
            f"no space left writing {full.filename or 'a file of the run'}",
            rule="checkpoints, adapter and merged model need free disk",
            fix="free space, lower checkpoint.keep_last, or choose another output_dir",
        )
    if isinstance(error, PermissionError):
        return EnvironmentProblem(
            f"permission denied: {error.filename}",
            rule="the run directory and the cache must be writable",
            fix="change the permissions, output_dir or data.cache_dir",
        )
    if isinstance(error, torch.distributed.DistNetworkError) and "EADDRINUSE" in str(error):
        return EnvironmentProblem(
            f"the ranks' meeting port is taken: {_first_line(error)}",
            rule="each run on a machine needs a port of its own",
            fix="end the other run, or give this one another port to the engine",
        )
    return None


_LOST_PEER = (
    "connection closed by peer",  # gloo
    "connection reset by peer",
    "broken pipe",
    "timed out waiting",  # gloo, and the store while ranks join
    "waiting for clients",
    "ncclremoteerror",
    "remote process exited",  # NCCL
    "communicator was aborted",  # NCCL
    "watchdog caught collective operation timeout",  # NCCL
)
"""What torch's backends say when the other end is gone. Their types do not tell: a DistBackendError
may as well be this rank's own misuse, and gloo raises a bare RuntimeError.
Source: messages of gloo and NCCL under torch 2.13."""


def _is_lost_peer(error: BaseException) -> bool:
    is_torch = isinstance(error, torch.distributed.DistError) or type(error) is RuntimeError
    return is_torch and any(text in str(error).lower() for text in _LOST_PEER)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _causes(error: BaseException) -> Iterator[OSError]:
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError):
            yield link
        link = link.__cause__ or link.__context__


def _is_disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
