"""Kernels whose storages differ from what a CPU tensor without content would show."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn import functional


@contextmanager
def kernels_of(device_type: str) -> Iterator[None]:
    """Keep what the kernels of a device keep, while a simulation is active."""
    with ExitStack() as stack:
        stack.enter_context(_grouped_products())
        if device_type == "cuda":
            stack.enter_context(_cuda_dropout())
            if importlib.util.find_spec("bitsandbytes") is not None:
                from trainer.simulated_quantization import int8_products_of_cuda

                stack.enter_context(int8_products_of_cuda())
        yield


def gemm_4bit() -> Any:
    """Return bitsandbytes' product with a 4-bit matrix; None where it was not imported."""
    namespace = torch.ops.bitsandbytes
    return namespace.gemm_4bit.default if hasattr(namespace, "gemm_4bit") else None


@contextmanager
def _cuda_dropout() -> Iterator[None]:
    """Dropout as CUDA does it: a mask of one byte, where the CPU keeps one of the input's type.

    By name: a `TorchFunctionMode` is off inside `backward`, where checkpoints are recomputed.
    """

    def dropout(
        input: torch.Tensor,  # noqa: A002  (the name it has in torch)
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,  # noqa: ARG001
    ) -> torch.Tensor:
        return torch.native_dropout(input, p, training)[0]

    original = functional.dropout
    functional.dropout = dropout
    try:
        yield
    finally:
        functional.dropout = original


@contextmanager
def _grouped_products() -> Iterator[None]:
    """Let experts of other types than bf16 through, which the real kernel takes and a fake refuses.

    Every token goes through the first expert: the same sizes, and the same full-size gradient.
    """

    def grouped_mm(mat_a: torch.Tensor, mat_b: torch.Tensor, **options: Any) -> torch.Tensor:
        if mat_a.dtype == torch.bfloat16:
            return original(mat_a, mat_b, **options)
        with torch.autocast("cpu", enabled=False):
            return mat_a @ mat_b[0]

    original = functional.grouped_mm
    functional.grouped_mm = grouped_mm
    try:
        yield
    finally:
        functional.grouped_mm = original
