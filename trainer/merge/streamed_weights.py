"""Computing with a model whose weights stay on disk: read when an operation asks for them.

The parameters are on the meta device. Linear layers are computed a block of rows at a time, of an
embedding the rows of the prompt's tokens are read, and whatever else takes a parameter gets all of
it, for as long as the operation takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from trainer.merge.weight_files import StoredTensor


class Values(Protocol):
    """Where the values of a parameter come from."""

    def read(self) -> Tensor: ...


_ABOUT: tuple[Any, ...] = (
    *(
        getattr(Tensor, name).__get__
        for name in ("dtype", "shape", "ndim", "requires_grad", "layout", "grad", "is_cuda")
    ),
    *(
        getattr(Tensor, name)
        for name in (
            *("size", "dim", "numel", "nelement", "stride", "element_size", "__len__"),
            *("is_floating_point", "is_complex", "is_contiguous", "requires_grad_"),
        )
    ),
)
"""What a tensor on the meta device answers as well as one with values."""
_ANSWERS: dict[Any, Any] = {
    getattr(Tensor, name).__get__: answer
    for name, answer in (("device", torch.device("cpu")), ("is_meta", False))
}


class StreamedWeights(TorchFunctionMode):
    """While active, parameters with `values` (by id) act as if they were on the CPU."""

    def __init__(self, values: Mapping[int, Values]) -> None:
        super().__init__()
        self.values = values
        # An expert layer asks for the same tensor once for every expert.
        self._last: tuple[int, Tensor] | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        flat, structure = tree_flatten((args, kwargs))
        if not any(id(value) in self.values for value in flat if isinstance(value, nn.Parameter)):
            return func(*args, **kwargs)
        if func in _ABOUT:
            return func(*args, **kwargs)
        if func in _ANSWERS:
            return _ANSWERS[func]
        if func in (functional.linear, functional.embedding):
            own = self._linear if func is functional.linear else self._embedding
            return own(*args, **kwargs)
        args, kwargs = tree_unflatten([self._loaded(value) for value in flat], structure)
        return func(*args, **kwargs)

    def _linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        inputs, bias = self._loaded(inputs), self._loaded(bias)
        stored = self.values.get(id(weight))
        if not isinstance(stored, StoredTensor):
            return functional.linear(inputs, self._loaded(weight), bias)
        output = self._product(inputs, stored, weight.dtype)
        return output if bias is None else output + bias

    def _product(self, inputs: Tensor, stored: StoredTensor, dtype: torch.dtype) -> Tensor:
        rows = stored.open()
        parts = [
            functional.linear(inputs, rows(start, stop).to(dtype))
            for start, stop in stored.blocks()
        ]
        return torch.cat(parts, dim=-1)

    def _embedding(self, ids: Tensor, weight: Tensor, **options: Any) -> Tensor:
        stored = self.values.get(id(weight))
        if not isinstance(stored, StoredTensor) or options.get("max_norm") is not None:
            return functional.embedding(ids, self._loaded(weight), **options)
        needed, places = torch.unique(ids, return_inverse=True)
        rows = stored.open()
        found = torch.cat([rows(row, row + 1).clone() for row in needed.tolist()])
        return found.to(weight.dtype)[places]

    def _loaded(self, value: Any) -> Any:
        if not isinstance(value, nn.Parameter) or id(value) not in self.values:
            return value
        if self._last is None or self._last[0] != id(value):
            self._last = None  # not two at a time
            self._last = (id(value), self.values[id(value)].read().to(value.dtype))
        return self._last[1]
