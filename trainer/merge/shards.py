"""Writing a merged weight file: the base's bytes, with those of the edited tensors replaced."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path

from torch import Tensor

from trainer.merge.edits import Edit
from trainer.merge.weight_files import StoredTensor, WeightFile, read_bytes, uint8_view

Advance = Callable[[int], None]
"""Takes the number of bytes done."""

_COPY_BYTES = 2**26
_NOT_HERE = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)


def write_shard(
    source: WeightFile, target: Path, edits: Mapping[str, Edit], advance: Advance
) -> None:
    """Write `source` as safetensors, each tensor of `edits` (by name) merged, and sync it.

    What is not edited is copied by the kernel where it can, without passing through this process.
    Raises: OSError, TrainingFailed for merged weights that are not finite.
    """
    with (
        source.path.open("rb", buffering=0) as reader,
        target.open("wb", buffering=0) as writer,
    ):
        _write(writer, memoryview(source.header))
        advance(len(source.header))
        for tensor in source.tensors:
            edit = edits.get(tensor.name)
            if edit is None:
                _copy(reader, writer, tensor, advance)
                continue
            for _, _, rows in edit.blocks():
                _write(writer, _bytes_of(rows))
                advance(rows.nbytes)
        os.fsync(writer.fileno())


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
