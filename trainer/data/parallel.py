"""Encoding many chunks, in this process or in several, results in the order of the chunks."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, Literal

from trainer.data.encode import Chunk, EncodedChunk, Encoder, EncoderSettings
from trainer.errors import EnvironmentProblem
from trainer.interruption import leave_to_parent, stop_if_requested

# Starting processes costs about as much as encoding this many chunks: anew, they import for 0.8 s.
CHUNKS_THAT_PAY = {"fork": 4, "spawn": 20}
_IN_FLIGHT = 2  # per process: one being encoded, one waiting
_MOST_WAITING = 24  # beside those, finished ones: bounds memory

_encoder: Encoder | None = None  # one per other process


def encode_all(
    chunks: Iterable[Chunk], encoder: Encoder, workers: int | None
) -> Iterator[tuple[Chunk, EncodedChunk]]:
    """Encode every chunk, in order. `workers` None: one per core once there is enough work."""
    chunks = _stoppable(chunks)
    if workers is None:
        workers = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        )
        enough = CHUNKS_THAT_PAY[_start_method()]
        head = list(islice(chunks, enough))
        workers = workers if len(head) == enough else 1
        chunks = chain(head, chunks)
    if not workers or workers == 1:
        for chunk in chunks:
            yield chunk, encoder.encode(chunk)
        return
    yield from _encode_in_processes(chunks, encoder, workers - 1)


def _start_method() -> Literal["fork", "spawn"]:
    """Fork where nothing works yet whose threads a copy would lack: CUDA, or a process group.

    A copy does Python, regular expressions and tokenizers alone, no tensors.
    """
    torch: Any = sys.modules.get("torch")
    is_at_work = torch is not None and (
        torch.cuda.is_initialized() or torch.distributed.is_initialized()
    )
    return "fork" if sys.platform == "linux" and not is_at_work else "spawn"


def _stoppable(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    for chunk in chunks:
        stop_if_requested()
        yield chunk


def _encode_in_processes(
    chunks: Iterator[Chunk], encoder: Encoder, others: int
) -> Iterator[tuple[Chunk, EncodedChunk]]:
    """Encode in other processes, and here whenever they have enough to do."""
    global _encoder  # noqa: PLW0603  (a pool offers no other place for a per-process object)
    method = _start_method()
    _encoder = encoder  # what a fork finds; at the first submit, before a thread of ours has begun
    pool = ProcessPoolExecutor(
        others,
        multiprocessing.get_context(method),
        initializer=_start_worker,
        initargs=(None if method == "fork" else encoder.settings,),
    )
    waiting: deque[tuple[Chunk, Future[EncodedChunk] | EncodedChunk]] = deque()
    try:
        for chunk in chunks:
            if sum(_is_unfinished(result) for _, result in waiting) < others * _IN_FLIGHT:
                waiting.append((chunk, pool.submit(_encode_in_worker, chunk)))
            else:
                waiting.append((chunk, encoder.encode(chunk)))
            too_many = others * _IN_FLIGHT + _MOST_WAITING
            while waiting and (len(waiting) > too_many or not _is_unfinished(waiting[0][1])):
                yield _result(*waiting.popleft())
        for chunk, result in waiting:
            yield _result(chunk, result)
    except BrokenProcessPool as error:
        raise EnvironmentProblem(
            "a process that prepares data died (killed, most likely for memory)",
            fix="set data.workers: 1, or give the machine more memory",
        ) from error
    finally:
        _encoder = None
        pool.shutdown(cancel_futures=True)


def _is_unfinished(result: Future[EncodedChunk] | EncodedChunk) -> bool:
    return isinstance(result, Future) and not result.done()


def _result(
    chunk: Chunk, result: Future[EncodedChunk] | EncodedChunk
) -> tuple[Chunk, EncodedChunk]:
    return chunk, result.result() if isinstance(result, Future) else result


def _start_worker(settings: EncoderSettings | None) -> None:
    """`settings`: None in a fork, which has the encoder already."""
    global _encoder  # noqa: PLW0603
    leave_to_parent(0)
    # The processes are the parallelism; threads inside each would only compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if settings is not None:
        _encoder = Encoder(settings)


def _encode_in_worker(chunk: Chunk) -> EncodedChunk:
    assert _encoder is not None  # set by the initializer
    return _encoder.encode(chunk)
