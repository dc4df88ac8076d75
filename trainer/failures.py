"""What went wrong, told in this project's errors: out of memory, disk full, interrupted."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import torch

from trainer.errors import EnvironmentProblem, Interrupted, RankZeroError, TrainingFailed
from trainer.interruption import is_requested


def explained(error: BaseException) -> BaseException:
    """Return the error to report for `error`; one we cannot explain comes back as it is."""
    if isinstance(error, RankZeroError):
        return error
    if is_requested():
        # Another rank has stopped for the same request, and broke what this one was waiting for.
        return Interrupted("stopped on request, while working with another rank")
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        first_line = (str(error).splitlines() or ["out of memory"])[0]
        return TrainingFailed(
            f"out of memory: {first_line}",
            rule="weights, optimizer state and the activations of one micro-batch must fit",
            fix="lower training.max_tokens_per_device or data.max_length, turn on "
            "training.gradient_checkpointing, or set model.quantization: nf4",
        )
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
    return error


def _causes(error: BaseException) -> Iterator[OSError]:
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError):
            yield link
        link = link.__cause__ or link.__context__


def _is_disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
