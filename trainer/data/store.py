"""Prepared data on disk: one Arrow file of rows, one index array per split.

    ENTRY/rows.arrow            every example, once (memory-mapped)
    ENTRY/{train,validation,test}.npy   positions in rows.arrow; an empty split has no file
    ENTRY/report.json           what data_report.json is made of
    ENTRY/skipped_rows.jsonl    rows left out, as they were read (only if there are any)
    ENTRY/entry.json            fingerprint and format version; without it there is no entry

Shapes: N examples of a split, R examples of the file, T tokens of one example.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.encode import EncodedChunk
from trainer.data.sources import ROLES, Role
from trainer.errors import EnvironmentProblem

SplitName = Role
SPLITS = ROLES
FORMAT_VERSION = 1
_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.uint8())),  # bytes, not bits: a row is then a view of the file
        ("source", pa.int32()),
        ("row", pa.int64()),  # the source row this example came from
        ("order_key", pa.float64()),
        ("length", pa.int32()),
        ("num_labels", pa.int32()),
        ("digest", pa.uint64()),
        ("truncated", pa.bool_()),
    ]
)


class RowWriter:
    """Appends encoded chunks to rows.arrow."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._writer = pa.ipc.new_file(self._file, _SCHEMA)

    def write(
        self, chunk: EncodedChunk, source: int, first_row: int, order_keys: NDArray[np.float64]
    ) -> None:
        """Append one chunk. Shapes: order_keys (E,), one per example."""
        if not len(chunk.lengths):
            return
        num = len(chunk.lengths)
        bounds = _array(np.concatenate(([0], np.cumsum(chunk.lengths))).astype(np.int32))
        columns = [
            pa.ListArray.from_arrays(bounds, _array(chunk.ids)),
            pa.ListArray.from_arrays(bounds, _array(chunk.mask)),
            _array(np.full(num, source, np.int32)),
            _array(chunk.rows.astype(np.int64) + first_row),
            _array(order_keys),
            _array(chunk.lengths),
            _array(chunk.num_labels),
            _array(chunk.digests),
            pa.Array.from_buffers(
                pa.bool_(),
                num,
                [None, pa.py_buffer(np.packbits(chunk.truncated, bitorder="little"))],
            ),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._writer.close()
        finally:
            self._file.close()


# Arrow's own conversions from and to NumPy import pandas, which takes 0.3 seconds.
def _array(values: NDArray[Any]) -> Any:
    """Wrap numbers without a copy."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _numbers(array: Any, dtype: type[Any]) -> NDArray[Any]:
    """View the numbers of an array that is whole and without nulls, as all are that we write."""
    return np.frombuffer(array.buffers()[1], dtype, len(array))


def _flags(array: Any) -> NDArray[np.bool_]:
    bits = np.frombuffer(array.buffers()[1], np.uint8)
    return np.unpackbits(bits, count=len(array), bitorder="little").view(np.bool_)


class RowTable:
    """rows.arrow, memory-mapped: columns of numbers in memory, tokens read where they lie."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        starts = np.cumsum([0] + [batch.num_rows for batch in batches])
        self._starts: NDArray[np.int64] = starts.astype(np.int64)
        self._bounds = [_numbers(batch.column(0).offsets, np.int32) for batch in batches]
        self._ids = [_numbers(batch.column(0).values, np.int32) for batch in batches]
        self._masks = [_numbers(batch.column(1).values, np.bool_) for batch in batches]

        def column(name: str, dtype: type[Any]) -> NDArray[Any]:
            parts = [_numbers(batch.column(name), dtype) for batch in batches]
            return np.concatenate([*parts, np.empty(0, dtype)])

        self.sources: NDArray[np.int32] = column("source", np.int32)
        self.rows: NDArray[np.int64] = column("row", np.int64)
        self.order_keys: NDArray[np.float64] = column("order_key", np.float64)
        self.lengths: NDArray[np.int32] = column("length", np.int32)
        self.num_labels: NDArray[np.int32] = column("num_labels", np.int32)
        self.digests: NDArray[np.uint64] = column("digest", np.uint64)
        flags = [_flags(batch.column("truncated")) for batch in batches]
        self.truncated: NDArray[np.bool_] = np.concatenate([*flags, np.empty(0, np.bool_)])

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return ids (T,) and loss mask (T,): read-only views of the mapped file."""
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        local = index - int(self._starts[batch])
        start, end = self._bounds[batch][local : local + 2]
        return self._ids[batch][start:end], self._masks[batch][start:end]


class PreparedSplit:
    """One split. Pickles as its place on disk, so worker processes map the file themselves."""

    def __init__(self, data: PreparedData, name: SplitName, index: NDArray[np.int64]) -> None:
        self._data, self._name, self._index = data, name, index
        table = data.table
        self.lengths: NDArray[np.int32] = table.lengths[index]
        """(N,) tokens per example."""
        self.num_labels: NDArray[np.int32] = table.num_labels[index]
        """(N,) tokens that carry a loss, after the shift: mask[1:].sum()."""
        keys = table.order_keys[index]
        is_ordered = name == "train" and len(keys) > 0 and not np.isnan(keys).all()
        self.order_keys: NDArray[np.float64] | None = keys if is_ordered else None
        """(N,) None: shuffle; else sort ascending (stable) every epoch."""

    def __len__(self) -> int:
        return len(self._index)

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return ids (T,) and loss mask (T,) of one example."""
        if not 0 <= index < len(self._index):
            raise IndexError(f"example {index} of {len(self._index)}")
        return self._data.table.row(int(self._index[index]))

    @property
    def data(self) -> PreparedData:
        """What this is a split of."""
        return self._data

    @property
    def positions(self) -> NDArray[np.int64]:
        """(N,) where the examples lie in rows.arrow; weights make positions repeat."""
        return self._index

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_split, (self._data.entry, self._name)


class PreparedData:
    """A cache entry, opened."""

    def __init__(self, entry: Path) -> None:
        self.entry = entry
        self.fingerprint: str = json.loads((entry / "entry.json").read_text())["fingerprint"]
        """Content address of the prepared data."""
        self.table = RowTable(entry / "rows.arrow")
        report = json.loads((entry / "report.json").read_text(encoding="utf-8"))
        self.largest_token_id: int = report["largest_token_id"]
        read = [source["rows_read"] for source in report["sources"]]
        self.first_rows: list[int] = np.cumsum([0, *read])[:-1].tolist()
        """The number of each source's first row, counted over all sources."""

    def split(self, name: SplitName) -> PreparedSplit | None:
        """Open one split; None when it is empty."""
        path = self.entry / f"{name}.npy"
        return PreparedSplit(self, name, np.load(path)) if path.is_file() else None

    def __reduce__(self) -> tuple[Any, ...]:
        return load_prepared, (self.entry,)


def load_prepared(entry: Path) -> PreparedData:
    """Open what `prepare` made. Raises EnvironmentProblem when it is not there or not readable."""
    try:
        return PreparedData(entry)
    except (OSError, ValueError, KeyError) as error:  # ArrowInvalid is a ValueError
        raise EnvironmentProblem(
            f"{entry}: prepared data cannot be read: {error}",
            rule="a cache entry is complete or absent",
            fix=f"remove {entry}; it is made again from the source files",
        ) from error


def _load_split(entry: Path, name: SplitName) -> PreparedSplit:
    split = load_prepared(entry).split(name)
    if split is None:
        raise EnvironmentProblem(f"{entry}: the {name} split is gone")
    return split


def write_index(entry: Path, name: SplitName, index: NDArray[np.int64]) -> None:
    """Write the positions of one split; nothing when it is empty."""
    if len(index):
        np.save(entry / f"{name}.npy", index)
