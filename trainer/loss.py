"""Next-token loss of a padding-free micro-batch: labelled positions first, then the vocabulary.

Where the architecture allows it, the model's own head runs over a few labelled positions at a time
and each piece's gradient is taken at once, so neither (T, V) nor (L, V) logits ever exist.

Letters: T tokens, L labelled positions, V vocabulary, X hidden size.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils import ModelOutput

from trainer.data.collate import MicroBatch
from trainer.kernels.compiling import kernel
from trainer.kernels.packed_attention import PACKED, boundaries_mask, longest_segment

LossWay = Literal["chunked", "selected", "full"]
"""How logits are made: of a few labelled positions at a time, of all labelled, of all positions."""

# Of one piece: on a CPU no more than malloc reuses (32 MiB in fp32), on a GPU enough for its matrix
# units (128 positions of a vocabulary of 128k, 64 MiB).
_LOGITS_OF_PIECE = {"cpu": 2**23}
_LOGITS_OF_PIECE_GPU = 2**24


@dataclass(frozen=True)
class LossPlan:
    """What `summed_loss` may ask of a model."""

    way: LossWay
    passes_boundaries: bool = False
    """Its attention takes the row's boundaries in place of a mask."""
    passes_cu_seqlens: bool = False
    """Its attention is flash-attn's, which else looks for them at every layer."""


def prepare_loss(model: nn.Module, device_type: str, *, chunked: bool = True) -> LossPlan:
    """Choose the leanest way this architecture allows, and make the model ready for it."""
    causal = causal_model(model)
    attention = causal.config._attn_implementation
    way: LossWay = "full"
    if "logits_to_keep" in inspect.signature(causal.forward).parameters:
        way = "selected"
        if chunked and _has_frozen_head(causal):
            way = "chunked"
            size = _LOGITS_OF_PIECE.get(device_type, _LOGITS_OF_PIECE_GPU)
            causal.forward = _forward_with_loss(causal, size)
    return LossPlan(way, attention == PACKED, str(attention).startswith("flash_attention"))


def summed_loss(model: nn.Module, micro_batch: MicroBatch, plan: LossPlan) -> Tensor:
    """Cross-entropy summed (not averaged) over the labelled positions, in fp32."""
    arguments: dict[str, Any] = {
        "input_ids": micro_batch.input_ids,
        "position_ids": micro_batch.position_ids,
        "use_cache": False,
        **_boundaries(micro_batch, plan),
    }
    positions, targets = micro_batch.label_positions, micro_batch.targets
    if plan.way == "chunked":
        loss: Tensor = model(**arguments, label_positions=positions, targets=targets)
        return loss
    if plan.way == "selected":
        logits = model(**arguments, logits_to_keep=positions).logits[0]
    else:
        logits = model(**arguments).logits[0, positions]
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


def _boundaries(micro_batch: MicroBatch, plan: LossPlan) -> dict[str, Any]:
    device = micro_batch.input_ids.device
    if plan.passes_boundaries:
        return {"attention_mask": boundaries_mask(micro_batch.cu_seqlens, device)}
    if plan.passes_cu_seqlens:
        longest = longest_segment(micro_batch.cu_seqlens)
        moved = micro_batch.cu_seqlens.to(device, non_blocking=True)
        return {
            "cu_seq_lens_q": moved,
            "cu_seq_lens_k": moved,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    return {}


def causal_model(model: nn.Module) -> Any:
    """Return the transformers model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _has_frozen_head(causal: Any) -> bool:
    """Whether `causal` is a decoder, then a head whose matrix is frozen (adapters on it may train).

    A trained one would hold its whole gradient beside the logits of a piece: often more than the
    logits it saves.
    """
    head = causal.get_output_embeddings()
    is_pair = causal.base_model_prefix in causal._modules and head is not None
    return is_pair and not head.weight.requires_grad


def _forward_with_loss(causal: Any, logits_of_piece: int) -> Callable[..., Any]:
    """Let the model's forward take labels, and return the loss alone when it gets them."""
    plain = causal.forward

    @functools.wraps(plain)
    def forward(
        *arguments: Any,
        label_positions: Tensor | None = None,
        targets: Tensor | None = None,
        **keywords: Any,
    ) -> Any:
        if label_positions is None or targets is None:
            return plain(*arguments, **keywords)
        decoder = causal._modules[causal.base_model_prefix]
        given = {name: value for name, value in keywords.items() if value is not None}
        decoded: ModelOutput = decoder(*arguments, **given)
        hidden = decoded.last_hidden_state[0, label_positions]

        def head(piece: Tensor) -> Tensor:
            with _answering(causal, type(decoded)(last_hidden_state=piece[None])):
                logits: Tensor = plain(input_ids=None, use_cache=False).logits
            return logits

        rows = max(1, logits_of_piece // causal.config.get_text_config().vocab_size)
        if not torch.is_grad_enabled():
            return _loss_alone(hidden, targets, head, rows)
        trained = _head_parameters(causal)
        loss: Tensor = _PiecewiseLoss.apply(hidden, targets, head, rows, *trained)  # type: ignore[no-untyped-call]
        return loss

    return forward


@contextmanager
def _answering(causal: Any, answer: ModelOutput) -> Iterator[None]:
    """Have the decoder of a model answer with what is known already."""
    name = causal.base_model_prefix
    decoder = causal._modules[name]
    causal._modules[name] = _Answer(answer)
    try:
        yield
    finally:
        causal._modules[name] = decoder


class _Answer(nn.Module):
    def __init__(self, answer: ModelOutput) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *_: Any, **__: Any) -> ModelOutput:
        return self.answer


def _head_parameters(causal: Any) -> list[nn.Parameter]:
    """Trained parameters outside the decoder; a tied head's are the embeddings'."""
    parameters = [
        parameter
        for name, module in causal.named_children()
        if name != causal.base_model_prefix
        for parameter in module.parameters()
    ]
    return [parameter for parameter in dict.fromkeys(parameters) if parameter.requires_grad]


def _loss_alone(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], rows: int
) -> Tensor:
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(hidden), rows):
        here = slice(start, start + rows)
        total += functional.cross_entropy(
            head(hidden[here])[0].float(), targets[here], reduction="sum"
        )
    return total


class _PiecewiseLoss(torch.autograd.Function):
    """Summed cross-entropy over pieces of the labelled positions; gradients are taken on the way.

    Source: the idea of Liger-Kernel's fused linear cross-entropy, with the model's own head inside.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        head: Callable[[Tensor], Tensor],
        rows: int,
        *trained: Tensor,
    ) -> Tensor:
        """Shapes: hidden (L, X), targets (L,) -> ()"""
        needs = ctx.needs_input_grad
        wanted = [needs[0], *needs[4:]]
        sums = [
            torch.zeros_like(tensor) if need else None
            for tensor, need in zip((hidden, *trained), wanted, strict=True)
        ]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), rows):
            here = slice(start, start + rows)
            with torch.enable_grad():
                piece = hidden[here].detach().requires_grad_()
                logits = head(piece)
            losses, d_logits = _losses_and_gradient(logits.detach()[0], targets[here])
            total += losses.sum()
            inputs = [piece, *trained]
            asked = [index for index, need in enumerate(wanted) if need]
            gradients = torch.autograd.grad(
                logits, [inputs[index] for index in asked], d_logits[None], allow_unused=True
            )
            for index, gradient in zip(asked, gradients, strict=True):
                place = sums[index]
                if gradient is not None and place is not None:
                    (place[here] if index == 0 else place).add_(gradient)
        ctx.save_for_backward(*sums)
        return total

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, *d_trained = (
            None if gradient is None else gradient * d_loss.to(gradient.dtype)
            for gradient in ctx.saved_tensors
        )
        return (d_hidden, None, None, None, *d_trained)


@kernel
def _losses_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes: (L, V), (L,) -> losses (L,) fp32, gradient of their sum (L, V)"""
    precise = logits.float()
    log_sums = precise.logsumexp(-1, keepdim=True)
    losses = log_sums[:, 0] - precise.gather(1, targets[:, None])[:, 0]
    is_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    gradient = torch.exp(precise - log_sums) - is_target.to(torch.float32)
    return losses, gradient.to(logits.dtype)
