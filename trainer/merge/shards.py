"""Writing a merged weight file: the base's bytes, with those of the edited tensors replaced."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from trainer.merge.edits import Edit, Unchanged
from trainer.merge.weight_files import (
    StoredTensor,
    WeightFile,
    read_bytes,
    uint8_view,
    written_type,
)
from trainer.safetensors_file import make_header

Advance = Callable[[int], None]
"""Takes the number of bytes done."""

_INDEX = "model.safetensors.index.json"
_COPY_BYTES = 2**26
_NOT_HERE = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)


def write_shard(
    source: WeightFile,
    target: Path,
    edits: Mapping[str, Edit],
    dtype: torch.dtype | None,
    advance: Advance,
) -> None:
    """Write `source` as safetensors, each tensor of `edits` (by name) merged, and sync it.

    dtype: of all floating-point tensors; None leaves each in its own. What is not edited then is
    copied by the kernel where it can, without passing through this process.
    Raises: OSError, TrainingFailed for merged weights that are not finite.
    """
    header = source.header
    if dtype is not None:
        header = make_header((t.name, written_type(t, dtype), t.shape) for t in source.tensors)
    with (
        source.path.open("rb", buffering=0) as reader,
        target.open("wb", buffering=0) as writer,
    ):
        _write(writer, memoryview(header))
        advance(len(source.header))
        for tensor in source.tensors:
            edit = edits.get(tensor.name)
            other = written_type(tensor, dtype)
            if edit is None and other == tensor.dtype:
                _copy(reader, writer, tensor, advance)
                continue
            for start, stop, rows in (edit or Unchanged(tensor)).blocks(other):
                _write(writer, _bytes_of(rows))
                advance((stop - start) * tensor.row_bytes)
        os.fsync(writer.fileno())


def write_index(folder: Path, shards: Sequence[WeightFile]) -> None:
    """Write which shard holds which tensor, and how many bytes all of them have."""
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    content = {
        "metadata": {"total_size": sum(tensor.num_bytes for tensor in tensors)},
        "weight_map": {tensor.name: tensor.path.name for tensor in tensors},
    }
    text = json.dumps(content, indent=2, sort_keys=True)
    (folder / _INDEX).write_text(text + "\n", encoding="utf-8")


def _bytes_of(rows: Tensor) -> memoryview:
    return uint8_view(rows).numpy().data


def _write(writer: FileIO, data: memoryview) -> None:
    while data:
        data = data[writer.write(data) :]


def _copy(reader: FileIO, writer: FileIO, tensor: StoredTensor, advance: Advance) -> None:
    position, end = tensor.offset, tensor.offset + tensor.num_bytes
    by_kernel = sys.platform == "linux"
    while position < end:
        size = min(_COPY_BYTES, end - position)
        if by_kernel:
            try:
                size = os.copy_file_range(reader.fileno(), writer.fileno(), size, position)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                by_kernel = False
                continue
            if size == 0:  # some virtual file systems say so instead of failing
                by_kernel = False
                continue
        else:
            _write(writer, read_bytes(tensor.path, position, size).numpy().data)
        position += size
        advance(size)
