"""A base model of random weights, made on the device: neither files nor a network.

The weights depend on the seed and the shapes only, not on the precision: each is drawn in float32,
rounded to bfloat16 and stored as asked, so a float32 reference has the very same ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

SEED = 1
_KEPT_IN_16_BIT = "lm_head"


def random_base(
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attention: str | None = None,
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """Build the model one tensor at a time; quantised layers exist in 16 bit one by one only."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention
        )
    if quantization is not None:
        _make_quantizable(model, quantization)
    generator = torch.Generator(device).manual_seed(SEED)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            values = _values(module, parameter.shape, config.initializer_range, generator)
            setattr(module, name, _stored(parameter, values.to(dtype)))
    _renew_buffers(model, config, device)
    model.tie_weights()
    return model.eval()


def _values(
    module: nn.Module, shape: torch.Size, spread: float, generator: torch.Generator
) -> torch.Tensor:
    device = generator.device
    if "Norm" in type(module).__name__:
        return torch.ones(shape, device=device)
    drawn = torch.empty(shape, device=device).normal_(0.0, spread, generator=generator)
    return drawn.bfloat16()


def _stored(parameter: nn.Parameter, values: torch.Tensor) -> nn.Parameter:
    """Put the values into what the model holds there; moving a 4-bit parameter quantises it."""
    if type(parameter).__name__ == "Params4bit":
        kind: Any = type(parameter)
        quantised: nn.Parameter = kind(values, requires_grad=False, **parameter.__dict__).to(
            values.device
        )
        return quantised
    return nn.Parameter(values, requires_grad=False)


def _make_quantizable(model: PreTrainedModel, quantization: BitsAndBytesConfig) -> None:
    """Put bitsandbytes' 4-bit layers where transformers would, and say so as it does."""
    bitsandbytes = import_module("transformers.integrations.bitsandbytes")
    bitsandbytes.replace_with_bnb_linear(
        model, modules_to_not_convert=[_KEPT_IN_16_BIT], quantization_config=quantization
    )
    # What PEFT reads to choose the layer it wraps them in.
    model.is_loaded_in_4bit = True


def _renew_buffers(model: nn.Module, config: PreTrainedConfig, device: torch.device) -> None:
    """Build modules with buffers again, on the device: rotary frequencies are not weights."""
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            kind: Any = type(module)
            with device:
                model.set_submodule(name, kind(config))


@contextmanager
def replacing_downloads() -> Iterator[None]:
    """Let whoever loads a pretrained causal language model get a random one of that shape."""

    def load(_name: str, **options: Any) -> PreTrainedModel:
        (device,) = options["device_map"].values()
        return random_base(
            options["config"],
            dtype=options["dtype"],
            device=torch.device(device),
            attention=options.get("attn_implementation"),
            quantization=options.get("quantization_config"),
        )

    with patch.object(AutoModelForCausalLM, "from_pretrained", load):
        yield
