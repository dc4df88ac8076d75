"""Attention of a padding-free row: each token sees its own example only. Registered as `packed`.

The row's boundaries travel where a mask would: as an int32 "attention mask" of four dimensions,
which transformers hands to every layer as it is. So they are made once per micro-batch, on the
host, and no dense mask exists. Without them (generation) the same name is PyTorch's SDPA.

On CUDA `torch.nn.attention.varlen` (FlashAttention, part of PyTorch); elsewhere
`trainer.kernels.segment_attention`, written for the CPU.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainer.kernels import segment_attention

PACKED = "packed"
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def longest_segment(cu_seqlens: Tensor) -> int:
    """Return the tokens of the longest example of a row. `cu_seqlens`: on the host."""
    return int(cu_seqlens.diff().max())


def boundaries_mask(cu_seqlens: Tensor, device: torch.device) -> Tensor:
    """Wrap boundaries as the "mask" that `packed` attention reads.

    Shapes: (N + 1,) int32 on the host -> (1, 1, longest, N + 1) on the device, without copies: the
    third size tells kernels the longest segment, which a value could only by asking the device.
    """
    if device.type != "cuda":  # read on the host there
        return cu_seqlens.view(1, 1, 1, -1)
    moved = cu_seqlens.to(device, non_blocking=True)
    return moved.view(1, 1, 1, -1).expand(1, 1, longest_segment(cu_seqlens), -1)


def why_not_packed(
    architecture: PreTrainedConfig, model_class: Any, device_type: str, precision: str
) -> str:
    """Return why a model cannot use it, or nothing. `model_class`: None for unknown code."""
    return _why_not_for(architecture, model_class) or _why_not_on(device_type, precision)


def _why_not_for(architecture: PreTrainedConfig, model_class: Any) -> str:
    text = architecture.get_text_config()
    if model_class is None or not (
        model_class._supports_attention_backend
        and model_class._supports_flash_attn  # else it may keep its window to itself
        and model_class._supports_sdpa  # else its attention is more than attention, as with sinks
    ):
        return "the architecture does not call plain attention through transformers' interface"
    if not getattr(text, "is_causal", True):
        return "its attention is not causal"
    if set(getattr(text, "layer_types", None) or ()) - _KNOWN_LAYERS:
        return "some of its layers are not plain attention"
    if getattr(text, "attn_logit_softcapping", None):
        return "its attention scores are capped"
    has_dropout = getattr(text, "attention_dropout", 0.0) or getattr(text, "attn_pdrop", 0.0)
    return "its attention has dropout" if has_dropout else ""


def _why_not_on(device_type: str, precision: str) -> str:
    if device_type != "cuda":
        return "" if device_type == "cpu" else f"it has not been tried on {device_type}"
    if precision == "fp32":
        return "its kernels compute in 16 bit only"
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return "this PyTorch has no torch.nn.attention.varlen"
    needed = {"window_size", "enable_gqa", "scale"}
    if not needed <= inspect.signature(varlen_attn).parameters.keys():
        return "torch.nn.attention.varlen of this PyTorch knows no windows or shared keys"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        return "its kernels need an Ampere GPU or newer"
    return ""


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' interface asks. Shapes: (1, heads, T, D) -> (1, T, heads, D)."""
    if attention_mask is None or attention_mask.dtype != torch.int32:
        options |= {"scaling": scaling, "dropout": dropout}
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise NotImplementedError("packed attention knows neither caps nor sinks")
    # Under autocast queries and keys may leave their rotation in fp32; SDPA is cast by autocast.
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    boundaries = attention_mask[0, 0, 0]
    window = sliding_window or 0
    if query.device.type == "cuda":
        return _on_cuda(query, key, value, boundaries, attention_mask.shape[2], scale, window), None
    output, _ = attend_in_segments(query, key, value, boundaries, scale, window)
    return output.transpose(1, 2), None


def _on_cuda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    boundaries: Tensor,
    longest: int,
    scale: float,
    window: int,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (heads[0].transpose(0, 1) for heads in (query, key, value))
    output: Any = varlen_attn(
        q,
        k,
        v,
        boundaries,
        boundaries,
        longest,
        longest,
        scale=scale,
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[None]  # type: ignore[no-any-return]


@torch.library.custom_op("rankzero::attend_in_segments", mutates_args=())
def attend_in_segments(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """Make `segment_attention.forward` one opaque step to compilers and simulations."""
    return segment_attention.forward(query, key, value, boundaries, scale, window)


@torch.library.custom_op("rankzero::attend_in_segments_backward", mutates_args=())
def _attend_in_segments_backward(
    d_output: Tensor,
    log_sums: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    boundaries: Tensor,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (query, key, value, boundaries)
    return segment_attention.backward(d_output, log_sums, inputs, scale, window)


def _token_major(heads: Tensor, width: int) -> Tensor:
    """Shapes: like (1, h, T, D) -> (1, h, T, width), a token's heads side by side."""
    batch, num_heads, tokens, _ = heads.shape
    return heads.new_empty(batch, tokens, num_heads, width).transpose(1, 2)


@attend_in_segments.register_fake
def _(query: Tensor, _: Tensor, value: Tensor, *__: object) -> tuple[Tensor, Tensor]:
    return _token_major(query, value.shape[-1]), _token_major(query, 1).float()


@_attend_in_segments_backward.register_fake
def _(
    _: Tensor, __: Tensor, query: Tensor, key: Tensor, value: Tensor, *___: object
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (_token_major(like, like.shape[-1]) for like in (query, key, value))
    return query, key, value


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, boundaries, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(output[1], query, key, value, boundaries)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, d_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _attend_in_segments_backward(d_output, *ctx.saved_tensors, ctx.scale, ctx.window)
    return (*gradients, None, None, None)


attend_in_segments.register_autograd(_differentiate, setup_context=_keep)
AttentionInterface.register(PACKED, packed_attention)
# For rows without boundaries, which SDPA computes.
AttentionMaskInterface.register(PACKED, sdpa_mask)
