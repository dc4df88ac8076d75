"""How much arithmetic a step must do, and what share of the device's peak that makes.

Only what training needs counts: no recomputation, no padding, and the head at labelled positions
alone. A frozen weight costs 4 FLOP a token (2 forward, 2 for the gradient of its input), a trained
one 6. Source: Kaplan et al. 2020, section 2.1 (2 N forward, 4 N backward), less 2 N where a weight
has no gradient; attention as in Dao 2023, FlashAttention-2, section 4.1, causal half only.

Letters: N weights that multiply every token, N' the head's, H query heads, D of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import nn

from trainer.loss import causal_model
from trainer.shipped import shipped_folder

_TERA = 1e12


@dataclass(frozen=True)
class Weights:
    """Weights by what they cost."""

    frozen: int
    trained: int

    @property
    def flops(self) -> int:
        """Of one token or position."""
        return 4 * self.frozen + 6 * self.trained


@dataclass(frozen=True)
class ModelFlops:
    """What one model's training costs."""

    layers: Weights
    head: Weights
    attention_width: int
    """H x D."""
    windows: tuple[int, ...]
    """Keys a token sees at most, for each layer; 0 for all before it."""

    def of_step(self, lengths: NDArray[np.int32], num_labels: int) -> float:
        """FLOP of a step. `lengths`: tokens of each example."""
        sizes = lengths.astype(np.float64)
        pairs = 0.0
        for window in set(self.windows):
            seen = np.minimum(sizes, window) if window else sizes
            # The first `seen` tokens see 1, 2, ... keys, the others all of the window.
            of_layer = float((seen * (seen + 1) / 2 + (sizes - seen) * seen).sum())
            pairs += self.windows.count(window) * of_layer
        # Two products of 2 H D FLOP forward, twice that backward.
        attention = 12.0 * self.attention_width * pairs
        return self.layers.flops * float(sizes.sum()) + self.head.flops * num_labels + attention


def model_flops(model: nn.Module) -> ModelFlops:
    """Count a model's products. ZeRO-3 partitions and packed weights count whole."""
    causal = causal_model(model)
    text = causal.config.get_text_config()
    head = causal.get_output_embeddings()
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    in_head = set(head.modules()) if head is not None else set()
    inside = [module for module in causal.modules() if module not in in_head]
    return ModelFlops(
        layers=_weights(inside, _active_share(text)),
        head=_weights(list(in_head), 1.0),
        attention_width=heads * head_size,
        windows=_windows(text),
    )


def _weights(modules: list[nn.Module], active_share: float) -> Weights:
    frozen = trained = 0.0
    for module in modules:
        for parameter in module.parameters(recurse=False):
            size = _products(module, parameter, active_share)
            if parameter.requires_grad:
                trained += size
            else:
                frozen += size
    return Weights(round(frozen), round(trained))


def _products(module: nn.Module, parameter: Any, active_share: float) -> float:
    """Return the weights of a parameter that multiply a token: matrices, no look-ups."""
    shape = getattr(parameter, "ds_shape", parameter.shape)
    if isinstance(module, nn.Embedding):
        return 0.0
    if isinstance(module, nn.Linear):  # bitsandbytes' layers too, whose weights are packed
        is_matrix = len(shape) > 1 or parameter is module.weight
        return float(module.in_features * module.out_features) if is_matrix else 0.0
    if len(shape) == 3:  # experts in one tensor
        return active_share * float(np.prod(shape))
    return float(np.prod(shape)) if len(shape) == 2 else 0.0


def _active_share(text: Any) -> float:
    """Return the share of experts a token goes through."""
    per_token = getattr(text, "num_experts_per_tok", None)
    total = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
    return per_token / total if per_token and total else 1.0


def _windows(text: Any) -> tuple[int, ...]:
    window: int = getattr(text, "sliding_window", None) or 0
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        return (window,) * int(text.num_hidden_layers)
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def peak_flops(device: torch.device) -> float | None:
    """Return the device's peak in bf16 from the table of hardware; None when it is not in there."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    table = yaml.safe_load(
        (shipped_folder("launcher") / "profiles" / "hardware.yaml").read_text("utf-8")
    )
    for gpu in table["gpus"].values():
        if name in gpu["nvml_names"]:
            return float(gpu["peak_bf16_tflops"]["value"]) * _TERA
    return None
