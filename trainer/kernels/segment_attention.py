"""Causal attention within the segments of one packed row, as dense products, for the CPU.

Segments of like length are padded to one block and go through batched matrix products, in bands of
query rows so that no more than the causal half is computed. PyTorch's own CPU attention in bfloat16
takes three times as long for a row of short segments, and a mask makes it slower still.

The softmax's row sums are kept (as logarithms) and the rest is computed again on the way back.
Source: Dao 2023, FlashAttention-2, section 3.1 (the equations; nothing here is tiled over keys).

Letters: T tokens, H query heads, G key-value heads, D of a head, N segments of a block, L its
longest, R rows of a band, C keys it sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from trainer.kernels.compiling import kernel

_BAND_ROWS = 128
# Blocks are as long as whole vectors, and never one long, which would be compiled apart.
_MULTIPLE = 16
# A segment joins the block of a longer one when it fills at least this part of it ...
_LEAST_FILLED = 0.75
# ... or when the block is so short that a second one would cost more than the padding.
_SHORT_TOKENS = 48


@kernel
def _softmax(scores: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes: scores (B, h, R, C), bias (R, C) -> exponentials, their sums and log-sums."""
    biased = scores.float() * scale + bias
    highest = biased.amax(-1, keepdim=True)
    exponentials = torch.exp(biased - highest)
    sums = exponentials.sum(-1, keepdim=True)
    return exponentials.to(scores.dtype), sums, highest + sums.log()


@kernel
def _softmax_backward(
    scores: Tensor, d_probabilities: Tensor, bias: Tensor, log_sums: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the probabilities again, and the gradient of the scores."""
    probabilities = torch.exp(scores.float() * scale + bias - log_sums)
    weighted = probabilities * d_probabilities.float()
    # The mean from the same products: that of output and its gradient, the usual way round, loses
    # a digit where the two nearly cancel.
    d_scores = (weighted - probabilities * weighted.sum(-1, keepdim=True)) * scale
    return probabilities.to(scores.dtype), d_scores.to(scores.dtype)


@dataclass(frozen=True)
class _Block:
    """Segments padded to one length, and where they lie among the gathered rows of all blocks."""

    num_segments: int
    length: int
    first_slot: int
    """Tokens, padding included, in the blocks before."""
    filled: Tensor | None
    """(N, 1, L, 1) true where a token is; None when nothing is padded."""

    def heads(self, gathered: Tensor, num_heads: int) -> Tensor:
        """View this block's part of (slots x heads, D) as (N, heads, L, D)."""
        first = self.first_slot * num_heads
        size = self.num_segments * self.length * num_heads
        return gathered[first : first + size].view(self.num_segments, num_heads, self.length, -1)


@dataclass(frozen=True)
class _Order:
    """Where the rows of (T x heads, D) go in the blocks, and the way back."""

    num_heads: int
    gather: Tensor
    """(slots x heads,) int64"""
    scatter: Tensor
    """(T x heads,) int64"""

    def gathered(self, tokens: Tensor) -> Tensor:
        """Shapes: (1, heads, T, D) -> (slots x heads, D)"""
        flat = tokens[0].transpose(0, 1).reshape(-1, tokens.shape[-1])
        return flat.index_select(0, self.gather)

    def scattered(self, rows: Tensor) -> Tensor:
        """Shapes: (slots x heads, D) -> (1, heads, T, D), a token's heads side by side"""
        flat = rows.index_select(0, self.scatter)
        return flat.view(1, -1, self.num_heads, rows.shape[-1]).transpose(1, 2)


@dataclass(frozen=True)
class _Layout:
    """How a row is cut into blocks, for queries and for keys and values."""

    blocks: tuple[_Block, ...]
    queries: _Order
    keys: _Order


def _grouped(lengths: tuple[int, ...]) -> list[list[int]]:
    """Group segments of like length, longest first."""
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fits = lengths[index] >= _LEAST_FILLED * longest or longest <= _SHORT_TOKENS
        if not groups or not fits:
            groups.append([])
            longest = lengths[index]
        groups[-1].append(index)
    return groups


@lru_cache(maxsize=4)  # every layer of a model asks for the same
def _layout(
    boundaries: tuple[int, ...], num_heads: int, num_kv_heads: int, device: torch.device
) -> _Layout:
    lengths = tuple(end - start for start, end in pairwise(boundaries))
    blocks, tokens, is_token = [], [], []
    first_slot = 0
    for group in _grouped(lengths):
        longest = -(-lengths[group[0]] // _MULTIPLE) * _MULTIPLE
        starts = torch.tensor([boundaries[index] for index in group])[:, None]
        sizes = torch.tensor([lengths[index] for index in group])[:, None]
        steps = torch.arange(longest)[None]
        filled = steps < sizes  # (N, L)
        padded = None if bool(filled.all()) else filled[:, None, :, None].to(device)
        blocks.append(_Block(len(group), longest, first_slot, padded))
        tokens.append(starts + torch.minimum(steps, sizes - 1))  # padding repeats the last token
        is_token.append(filled)
        first_slot += len(group) * longest
    queries, keys = (
        _order(tokens, is_token, number, device) for number in (num_heads, num_kv_heads)
    )
    return _Layout(tuple(blocks), queries, keys)


def _order(
    tokens: list[Tensor], is_token: list[Tensor], num_heads: int, device: torch.device
) -> _Order:
    """Spread (N, L) tokens of each block over its heads: (N, heads, L) rows."""
    heads = torch.arange(num_heads)[None, :, None]
    gather = torch.cat([(block[:, None] * num_heads + heads).reshape(-1) for block in tokens])
    real = torch.cat([one[:, None].expand(-1, num_heads, -1).reshape(-1) for one in is_token])
    slots = real.nonzero()[:, 0]
    scatter = torch.empty_like(slots)
    scatter[gather[slots]] = slots
    return _Order(num_heads, gather.to(device), scatter.to(device))


@lru_cache(maxsize=4)
def _bias(num_keys: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return 0 where a row sees a key, else -inf, for rows R that begin `num_keys` keys in."""
    row = torch.arange(_BAND_ROWS, device=device)[:, None] + num_keys
    key = torch.arange(num_keys + _BAND_ROWS, device=device)[None]
    seen = key <= row
    if window:
        seen &= key > row - window
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, float("-inf"))


@dataclass(frozen=True)
class _Band:
    """Query rows [first, end) and the keys [first_key, end) that any of them sees."""

    first: int
    end: int
    first_key: int
    bias: Tensor


def _bands(length: int, window: int, like: Tensor) -> list[_Band]:
    bands = []
    # A power of two, so that few are made.
    room = max(_BAND_ROWS, 1 << (length - 1).bit_length())
    bias = _bias(room, window, like.dtype, like.device)
    for first in range(0, length, _BAND_ROWS):
        end = min(first + _BAND_ROWS, length)
        first_key = max(0, first - window + 1) if window else 0
        shift = room - first
        part = bias[: end - first, first_key + shift : end + shift]
        bands.append(_Band(first, end, first_key, part))
    return bands


def _by_key_head(block: _Block, rows: Tensor, layout: _Layout) -> Tensor:
    """Shapes: (slots x H, D) -> (N x G, H / G, L, D)"""
    group = layout.queries.num_heads // layout.keys.num_heads
    view = block.heads(rows, layout.queries.num_heads)
    return view.view(-1, group, block.length, rows.shape[-1])


def _of_keys(block: _Block, rows: Tensor, layout: _Layout) -> Tensor:
    """Shapes: (slots x G, D) -> (N x G, L, D)"""
    return block.heads(rows, layout.keys.num_heads).flatten(0, 1)


def forward(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """Attend within segments.

    Shapes: query (1, H, T, D), key and value (1, G, T, D), boundaries (N + 1,) int32 from 0 to T ->
    output (1, H, T, D), log-sums (1, H, T, 1) fp32 for `backward`.
    Units: `window` keys, the token's own included; 0 for all.
    """
    layout = _layout(tuple(boundaries.tolist()), query.shape[1], key.shape[1], query.device)
    queries = layout.queries.gathered(query)
    keys, values = layout.keys.gathered(key), layout.keys.gathered(value)
    output = queries.new_empty(len(queries), value.shape[-1])
    log_sums = queries.new_empty(len(queries), 1, dtype=torch.float32)
    for block in layout.blocks:
        q, out, kept = (_by_key_head(block, rows, layout) for rows in (queries, output, log_sums))
        k, v = (_of_keys(block, rows, layout) for rows in (keys, values))
        for band in _bands(block.length, window, query):
            here, seen = slice(band.first, band.end), slice(band.first_key, band.end)
            scores = _products(q[:, :, here], k[:, seen].transpose(1, 2))
            weights, sums, kept[:, :, here] = _softmax(scores, band.bias, scale)
            torch.div(_products(weights, v[:, seen]), sums, out=out[:, :, here])
    return layout.queries.scattered(output), layout.queries.scattered(log_sums)


def backward(
    d_output: Tensor,
    log_sums: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value. `inputs`: those of `forward`, boundaries too.

    Shapes: as in `forward`.
    """
    query, key, value, boundaries = inputs
    layout = _layout(tuple(boundaries.tolist()), query.shape[1], key.shape[1], query.device)
    order = layout.queries
    queries, d_outputs = order.gathered(query), order.gathered(d_output)
    log_sums = order.gathered(log_sums)
    keys, values = layout.keys.gathered(key), layout.keys.gathered(value)
    d_queries, d_keys, d_values = (
        torch.empty_like(queries),
        torch.zeros_like(keys),
        torch.zeros_like(values),
    )
    for block in layout.blocks:
        if block.filled is not None:  # nothing was asked of padding
            block.heads(d_outputs, query.shape[1]).mul_(block.filled)
        q, d_out, kept, dq = (
            _by_key_head(block, rows, layout) for rows in (queries, d_outputs, log_sums, d_queries)
        )
        k, v, dk, dv = (_of_keys(block, rows, layout) for rows in (keys, values, d_keys, d_values))
        for band in _bands(block.length, window, query):
            here, seen = slice(band.first, band.end), slice(band.first_key, band.end)
            weights, d_scores = _softmax_backward(
                _products(q[:, :, here], k[:, seen].transpose(1, 2)),
                _products(d_out[:, :, here], v[:, seen].transpose(1, 2)),
                band.bias,
                kept[:, :, here],
                scale,
            )
            dq[:, :, here] = _products(d_scores, k[:, seen])
            _add_over_rows(dk[:, seen], d_scores, q[:, :, here])
            _add_over_rows(dv[:, seen], weights, d_out[:, :, here])
    return (
        order.scattered(d_queries),
        layout.keys.scattered(d_keys),
        layout.keys.scattered(d_values),
    )


def _products(rows: Tensor, others: Tensor) -> Tensor:
    """Shapes: (B, h, R, X), (B, X, Y) -> (B, h, R, Y)"""
    batch, heads, length, width = rows.shape
    return torch.bmm(rows.reshape(batch, heads * length, width), others).view(
        batch, heads, length, -1
    )


def _add_over_rows(sums: Tensor, weights: Tensor, rows: Tensor) -> None:
    """Add up over the query heads of a key head, too.

    Shapes: sums (B, C, D), weights (B, h, R, C), rows (B, h, R, D)
    """
    sums.baddbmm_(weights.flatten(1, 2).transpose(1, 2), rows.flatten(1, 2))
