"""A start-up proof that examples packed into one row do not see each other.

Shapes: T tokens of one short segment, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.kernels.packed_attention import boundaries_mask
from trainer.precision import DTYPES, ComputePrecision, autocast

_SEGMENT_TOKENS = (11, 7)  # unequal, and not multiples of a kernel's block
_ROUNDING_STEPS = 16  # of the logits' own number format: what another kernel may differ by
_SHARE_OF_MIXING = 0.1  # a model that mixes examples shows 1; separate ones stay near 0


@dataclass(frozen=True)
class PackingProof:
    """The decision, and the differences it rests on (logits, in the model's own units)."""

    exact: bool
    difference: float
    """Largest |packed - alone|."""
    leak: float
    """Largest change of the second segment's logits when only the first segment changes."""
    mixing: float
    """Largest |one joint example - alone|: what full mixing would look like."""

    @property
    def reason(self) -> str:
        verb = "keeps" if self.exact else "does not keep"
        return (
            f"the model {verb} packed examples apart: logits differ by {self.difference:.2g} from "
            f"separate passes (attending across examples: {self.mixing:.2g})"
        )


@torch.no_grad()
def packing_is_exact(
    model: nn.Module,
    vocabulary_size: int,
    *,
    precision: ComputePrecision = "fp32",
    passes_boundaries: bool = False,
    seed: int = 0,
) -> PackingProof:
    """Compare two segments in one row (position ids restarting) with each on its own.

    Three signs are needed because the arithmetic may be 16-bit or 8-bit: the second segment must
    not react to the first, and its logits must equal those computed alone, up to rounding or a
    small part of what mixing would do. Five forward passes of at most 18 tokens, in evaluation
    mode; the training mode of every module is restored. `precision`: what training computes in.
    `passes_boundaries`: packed rows come as in training, with their boundaries in place of a mask;
    single ones never do.
    Ranks: every rank under ZeRO-3 (each forward gathers the weights), else any.
    """
    first_tokens, second_tokens = _SEGMENT_TOKENS
    generator = torch.Generator().manual_seed(seed)

    def segment(tokens: int) -> Tensor:
        return torch.randint(vocabulary_size, (1, tokens), generator=generator)

    first, other, second = segment(first_tokens), segment(first_tokens), segment(second_tokens)
    restarting = torch.cat([torch.arange(first_tokens), torch.arange(second_tokens)])[None]
    joint = torch.arange(first_tokens + second_tokens)[None]
    boundaries = None
    if passes_boundaries:
        boundaries = torch.tensor([0, first_tokens, first_tokens + second_tokens]).int()
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with autocast(next(model.parameters()).device.type, precision):
            alone = torch.cat([_logits(model, first), _logits(model, second)])
            packed = _logits(model, torch.cat([first, second], dim=1), restarting, boundaries)
            disturbed = _logits(model, torch.cat([other, second], dim=1), restarting, boundaries)
            mixed = _logits(model, torch.cat([first, second], dim=1), joint)
    finally:
        for module, was_training in modes:
            module.training = was_training
    difference = _largest(packed - alone)
    leak = _largest((packed - disturbed)[first_tokens:])
    mixing = _largest((mixed - alone)[first_tokens:])
    rounding = _ROUNDING_STEPS * _rounding_unit(model, precision) * _largest(alone)
    allowed = _SHARE_OF_MIXING * mixing
    exact = leak <= allowed and difference <= max(allowed, rounding)
    return PackingProof(exact, difference, leak, mixing)


def _logits(
    model: nn.Module,
    row: Tensor,
    positions: Tensor | None = None,
    boundaries: Tensor | None = None,
) -> Tensor:
    """Shapes: row and positions [1, T], boundaries [N + 1] -> float32 logits [T, V]."""
    device = next(model.parameters()).device
    positions = torch.arange(row.shape[1])[None] if positions is None else positions
    mask = {} if boundaries is None else {"attention_mask": boundaries_mask(boundaries, device)}
    inputs = {"input_ids": row.to(device), "position_ids": positions.to(device)}
    output = model(**inputs, **mask, use_cache=False)
    logits: Tensor = output.logits[0].float()
    return logits


def _largest(values: Tensor) -> float:
    """Largest magnitude; not-a-number counts as infinite, so that no comparison passes on it."""
    return float(values.abs().nan_to_num(nan=float("inf")).max())


def _rounding_unit(model: nn.Module, precision: ComputePrecision) -> float:
    """Machine epsilon of the coarsest number format the activations go through."""
    kinds = {p.dtype for p in model.parameters() if p.dtype.is_floating_point}
    return max(torch.finfo(kind).eps for kind in {*kinds, DTYPES[precision]})
