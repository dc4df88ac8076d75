"""Noise on the embeddings while training, as if every packed example stood alone.

Source: NEFTune, arXiv 2310.05914: uniform noise of size alpha / sqrt(tokens x hidden size), where
`tokens` is the example's length. transformers' own hook would take the packed row's.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel


class EmbeddingNoise:
    """Adds noise to the embeddings of `model` in training mode."""

    def __init__(self, model: PreTrainedModel | PeftModel, alpha: float) -> None:
        self.alpha = alpha
        self.lengths: torch.Tensor | None = None
        model.get_input_embeddings().register_forward_hook(self._add)

    def follow(self, position_ids: torch.Tensor) -> None:
        """Tell where the examples of the next row begin. Shapes: (1, T), restarting at 0."""
        example = (position_ids[0] == 0).cumsum(0) - 1
        self.lengths = torch.bincount(example)[example]  # (T,)

    def _add(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training or self.lengths is None:
            return output
        size = self.alpha / (self.lengths * output.shape[-1]).to(output.dtype).sqrt()
        noise = torch.empty_like(output).uniform_(-1, 1)
        return output + noise * size[None, :, None]
