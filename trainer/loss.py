"""Next-token loss of a padding-free micro-batch.

Letters: T tokens, L labelled positions, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from peft import PeftModel
from torch.nn import functional

from trainer.data.collate import MicroBatch


def can_select_logits(model: torch.nn.Module) -> bool:
    """Whether the model projects only chosen positions to the vocabulary.

    Source: the `logits_to_keep` argument of transformers' causal language models.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def summed_loss(
    model: torch.nn.Module, micro_batch: MicroBatch, *, select_logits: bool
) -> torch.Tensor:
    """Cross-entropy summed (not averaged) over the labelled positions, in fp32.

    With `select_logits` the (T, V) logits never exist, only the (L, V) ones that carry a label.
    """
    arguments: dict[str, Any] = {
        "input_ids": micro_batch.input_ids,
        "position_ids": micro_batch.position_ids,
        "use_cache": False,
    }
    if select_logits:
        logits = model(**arguments, logits_to_keep=micro_batch.label_positions).logits[0]
    else:
        logits = model(**arguments).logits[0, micro_batch.label_positions]
    return functional.cross_entropy(logits.float(), micro_batch.targets, reduction="sum")
