"""The tensors of a weight file by name and place, read a few rows at a time.

Ordinary reads, not a memory map: mapped pages count as this process's memory.

Source: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the
bytes); torch.load under FakeTensorMode tells where in a .bin file each storage begins.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer.errors import ConfigError
from trainer.safetensors_file import DTYPES, LENGTH_BYTES, make_header

_LONGEST_HEADER = 100_000_000  # bytes; the safetensors library refuses longer ones
_BLOCK_VALUES = 2**21  # 8 MiB in float32, the type of the arithmetic; 32 took twice the time


Place = tuple[Path, str]
"""A file, and the name of a tensor in it."""
Rows = Callable[[int, int], Tensor]
"""Gives rows [start, stop) of a tensor."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file, as it lies there."""

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Of its first byte, from the beginning of the file."""

    @property
    def place(self) -> Place:
        return self.path, self.name

    @property
    def num_rows(self) -> int:
        """Slices along the first dimension; a scalar is one row."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        return self.num_rows * self.row_bytes

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Read rows [start, stop). Raises: ConfigError when the file ends before."""
        stop = self.num_rows if stop is None else stop
        first = self.offset + start * self.row_bytes
        data = read_bytes(self.path, first, (stop - start) * self.row_bytes)
        shape = (stop - start, *self.shape[1:]) if self.shape else ()
        return data.view(self.dtype).reshape(shape)

    def open(self) -> Rows:
        """Prepare to read many blocks; what a read has to work out first is worked out once.

        Rows are good until the next are asked for: they lie in one place, as new memory for each
        block costs more than reading it.
        """
        buffer = torch.empty(0, dtype=torch.uint8)

        def rows(start: int, stop: int) -> Tensor:
            nonlocal buffer
            size = (stop - start) * self.row_bytes
            if len(buffer) < size:
                buffer = torch.empty(size, dtype=torch.uint8)
            data = buffer[:size]
            read_into(data, self.path, self.offset + start * self.row_bytes)
            return data.view(self.dtype).reshape(stop - start, *self.shape[1:])

        return rows

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield the row ranges to work on one after another."""
        step = max(1, _BLOCK_VALUES // max(1, prod(self.shape[1:])))
        for start in range(0, self.num_rows, step):
            yield start, min(start + step, self.num_rows)


@dataclass(frozen=True)
class WeightFile:
    """A file of weights: its header as safetensors, its tensors in the order of their bytes."""

    path: Path
    header: bytes
    tensors: tuple[StoredTensor, ...]

    @property
    def num_bytes(self) -> int:
        """Size as a safetensors file."""
        return len(self.header) + sum(tensor.num_bytes for tensor in self.tensors)


def read_bytes(path: Path, offset: int, size: int) -> Tensor:
    """Read `size` bytes at `offset`. Raises: ConfigError when the file ends before."""
    data = torch.empty(size, dtype=torch.uint8)
    read_into(data, path, offset)
    return data


def read_into(data: Tensor, path: Path, offset: int) -> None:
    """Fill `data` with the bytes at `offset`. Raises: ConfigError when the file ends before."""
    view = data.numpy().data
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        done = 0
        while done < len(view):
            read = file.readinto(view[done:])
            if not read:
                raise _unreadable(path, f"it ends at byte {offset + done}")
            done += read


def uint8_view(tensor: Tensor) -> Tensor:
    """Return a tensor's bytes."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def open_weights(path: Path) -> WeightFile:
    """Read a file's table of contents. Raises: ConfigError when it is damaged or truncated."""
    return _open_torch(path) if path.suffix == ".bin" else _open_safetensors(path)


def _open_safetensors(path: Path) -> WeightFile:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            if len(start) < LENGTH_BYTES or length > min(size, _LONGEST_HEADER):
                raise _unreadable(path, f"{size} bytes are no whole header")
            text = file.read(length)
        first = LENGTH_BYTES + length
        entries: dict[str, Any] = json.loads(text)
        entries.pop("__metadata__", None)
        tensors = sorted(
            (_to_stored(path, name, entry, first) for name, entry in entries.items()),
            key=lambda tensor: (tensor.offset, tensor.num_bytes),
        )
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, f"its header is damaged ({error})") from error
    end = first
    for tensor in tensors:
        if tensor.offset != end:
            raise _unreadable(path, f"its header leaves a gap before {tensor.name}")
        end += tensor.num_bytes
    if end != size:
        raise _unreadable(path, f"it has {size} bytes, its header says {end}")
    return WeightFile(path, start + text, tuple(tensors))


def _to_stored(path: Path, name: str, entry: dict[str, Any], first: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    dtype, shape = DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"])
    stored = StoredTensor(path, name, dtype, shape, first + begin)
    if stored.num_bytes != end - begin:
        raise ValueError(f"{name} has {end - begin} bytes, its shape needs {stored.num_bytes}")
    return stored


def _open_torch(path: Path) -> WeightFile:
    try:
        with FakeTensorMode():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise _unreadable(path, reason, "save the base once more as safetensors") from error
    tensors: dict[tuple[int, tuple[int, ...]], StoredTensor] = {}
    size = os.stat(path).st_size  # noqa: PTH116
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise _unreadable(path, "it holds something else than tensors by name")
    for name, tensor in content.items():
        begin = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if begin is None or not tensor.is_contiguous() or tensor.dtype not in DTYPES.values():
            raise _unreadable(path, f"{name} is not stored plainly", "save the base as safetensors")
        place = begin + tensor.storage_offset() * tensor.element_size()
        stored = StoredTensor(path, name, tensor.dtype, tuple(tensor.shape), place)
        if place + stored.num_bytes > size:
            raise _unreadable(path, f"it ends before {name}")
        # Tied weights are one storage under two names; safetensors keep one of them.
        tensors.setdefault((place, stored.shape), stored)
    found = tuple(tensors.values())
    header = make_header((tensor.name, tensor.dtype, tensor.shape) for tensor in found)
    return WeightFile(path, header, found)


def written_type(tensor: StoredTensor, dtype: torch.dtype | None) -> torch.dtype:
    """Return the type a tensor has in a file whose floating-point tensors are of `dtype`."""
    return dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype


def _unreadable(path: Path, reason: str, fix: str = "copy or download it again") -> ConfigError:
    return ConfigError(
        f"{path} cannot be read: {reason}", rule="weights are read from whole files", fix=fix
    )
