"""LoRA layers whose products run in the precision of what they are added to.

PEFT casts each layer's input to the adapter's float32, and autocast casts it back: two passes over
an activation for each of seven layers. Here the small matrices are cast instead, and the scale is
applied to the narrow product rather than the wide one. The masters stay float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.nn import functional


def speed_up_adapters(model: nn.Module) -> int:
    """Replace the forward of every plain LoRA layer over linear weights; return how many.

    Plain: one adapter, without dropout or a variant such as DoRA. Anything else a layer may be
    asked for (another adapter, adapters off, merged weights) goes to PEFT as before.
    """
    layers = [module for module in model.modules() if _is_plain(module)]
    for layer in layers:
        layer.forward = _forward(layer)
    return len(layers)


def _is_plain(module: nn.Module) -> bool:
    # Subclasses for quantised layers are siblings: `LoraLayer` beside the layer's own class.
    if not isinstance(module, LoraLayer) or not (
        isinstance(module, LoraLinear) or type(module).__name__ in ("Linear4bit", "Linear8bitLt")
    ):
        return False
    names = list(module.lora_A)
    return (
        len(names) == 1
        and list(module.active_adapters) == names
        and isinstance(module.lora_A[names[0]], nn.Linear)
        and isinstance(module.lora_dropout[names[0]], nn.Identity)
        and not module.lora_variant
        and not module.lora_bias[names[0]]
    )


def _forward(layer: Any) -> Callable[..., Tensor]:
    plain = layer.forward
    (name,) = layer.lora_A
    down, up = layer.lora_A[name], layer.lora_B[name]

    @functools.wraps(plain)
    def forward(x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        is_asked_for_more = bool(arguments or keywords) or layer.active_adapters != [name]
        if is_asked_for_more or layer.disable_adapters or layer.merged_adapters:
            return plain(x, *arguments, **keywords)  # type: ignore[no-any-return]
        result = layer.base_layer(x)
        kind = result.dtype
        narrow = functional.linear(x.to(kind), down.weight.to(kind)) * layer.scaling[name]
        return torch.add(result, functional.linear(narrow, up.weight.to(kind)))

    return forward
