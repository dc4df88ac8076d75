"""What went wrong, told in this project's errors: out of memory, disk full, interrupted."""

from __future__ import annotations

import errno

import torch

from trainer.errors import EnvironmentProblem, RankZeroError, TrainingFailed


def explained(error: BaseException) -> BaseException:
    """Return the error to report for `error`; one we cannot explain comes back as it is."""
    if isinstance(error, RankZeroError):
        return error
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        first_line = (str(error).splitlines() or ["out of memory"])[0]
        return TrainingFailed(
            f"out of memory: {first_line}",
            rule="weights, optimizer state and the activations of one micro-batch must fit",
            fix="lower training.max_tokens_per_device or data.max_length, turn on "
            "training.gradient_checkpointing, or set model.quantization: nf4",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentProblem(
            f"no space left writing {error.filename or 'a file of the run'}",
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
