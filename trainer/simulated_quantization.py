"""bitsandbytes weights without content, with the sizes of the real ones.

Source: bitsandbytes 0.50 `functional.quantize_4bit` (blocks of 64 values with one scale each, the
scales in turn in blocks of 256 under double quantisation) and `nn.Int8Params` (one scale a row).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes
import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Params4bit

_VALUES_PER_SCALE = 64
_SCALES_PER_SCALE = 256
_CODE_ENTRIES = {"4bit": 16, "8bit": 256}


def quantized_like(meta: Any) -> torch.Tensor:
    """Make what `meta`, an unquantised bitsandbytes parameter on the meta device, becomes."""
    return _four_bit(meta) if isinstance(meta, Params4bit) else _int8(meta)


def _four_bit(meta: Any) -> torch.Tensor:
    count = math.prod(meta.shape)
    blocks = math.ceil(count / _VALUES_PER_SCALE)
    storage = meta.quant_storage
    packed = torch.empty(math.ceil(count / 2 / storage.itemsize), 1, dtype=storage)
    nested = None
    if meta.compress_statistics:
        nested = QuantState(
            absmax=torch.empty(math.ceil(blocks / _SCALES_PER_SCALE)),
            code=torch.empty(_CODE_ENTRIES["8bit"]),
            blocksize=_SCALES_PER_SCALE,
            dtype=torch.float32,
        )
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8 if nested else torch.float32),
        shape=meta.shape,
        code=torch.empty(_CODE_ENTRIES["4bit"]),
        blocksize=_VALUES_PER_SCALE,
        quant_type=meta.quant_type,
        dtype=meta.dtype,
        offset=torch.empty(()) if nested else None,
        state2=nested,
    )
    weight = torch.nn.Parameter(packed, requires_grad=False)
    weight.quant_state = state  # type: ignore[attr-defined]
    return weight


def _int8(meta: Any) -> torch.Tensor:
    weight = torch.nn.Parameter(torch.empty(meta.shape, dtype=torch.int8), requires_grad=False)
    weight.CB = weight.data  # type: ignore[attr-defined]
    weight.SCB = torch.empty(meta.shape[0])  # type: ignore[attr-defined]
    return weight


class _Int8Product(torch.autograd.Function):
    """The storages of `MatMul8bitLt` on CUDA with a frozen weight; the CPU takes another path."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, bias: torch.Tensor | None, state: Any
    ) -> torch.Tensor:
        ctx.kept, ctx.state, ctx.has_bias = inputs, state, bias is not None
        rows = inputs.reshape(-1, inputs.shape[-1])
        quantized = rows.to(torch.float16).to(torch.int8)
        sums = quantized.new_empty(rows.shape[0], state.CB.shape[0], dtype=torch.int32)
        output = sums.to(inputs.dtype)
        return output.reshape(*inputs.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        weight = ctx.state.CB.to(gradient.dtype)
        return gradient.matmul(weight), gradient.sum((0, 1)) if ctx.has_bias else None, None


@contextmanager
def int8_products_of_cuda() -> Iterator[None]:
    """Let int8 layers keep what they keep on CUDA, in the active simulation."""

    def product(
        inputs: torch.Tensor,
        weight: Any,  # noqa: ARG001  (the state has it too)
        *,
        bias: torch.Tensor | None = None,
        state: Any,
    ) -> Any:
        return _Int8Product.apply(inputs, bias, state)  # type: ignore[no-untyped-call]

    original = bitsandbytes.matmul
    bitsandbytes.matmul = product
    try:
        yield
    finally:
        bitsandbytes.matmul = original
