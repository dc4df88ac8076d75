"""The tensors of a running trainer, copied to the host of rank 0, and their files.

Ranks: capturing is collective (ZeRO gathers); what comes back is complete on rank 0 alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel

from trainer.checkpoints.adapter import WEIGHTS, adapter_config, adapter_tensors
from trainer.checkpoints.moments import optimizer_tensors, trained_parameters
from trainer.checkpoints.zero import master_weights, zero_tensors
from trainer.safetensors_file import write_safetensors

if TYPE_CHECKING:
    from trainer.training import RankZeroTrainer

OPTIMIZER = "optimizer.safetensors"
RANKS = "ranks.safetensors"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class AdapterSnapshot:
    """An adapter and its optimizer as they were at one step; safe from what training does next."""

    config: PeftConfig
    adapter: Tensors
    optimizer: Tensors | None
    """None when it is kept elsewhere, in parts."""


def capture_adapter(
    trainer: RankZeroTrainer, names: Mapping[str, str], *, with_optimizer: bool
) -> AdapterSnapshot | None:
    """Copy the adapter, and the optimizer's state, to the host; None on other ranks than 0.

    `names`: PEFT's name of each tensor -> the parameter's (`adapter_names`).
    """
    model: PeftModel = trainer.model
    zero = trainer.zero_optimizer
    is_writer = trainer.world.is_rank_zero
    masters = trained_parameters(model).items() if zero is None else master_weights(model)
    weights = _to_host(masters, keep=is_writer)
    moments = _to_host(_moments(trainer), keep=is_writer) if with_optimizer else None
    if not is_writer:
        return None
    tensors = adapter_tensors(names, weights)
    return AdapterSnapshot(adapter_config(model), tensors, moments)


def _moments(trainer: RankZeroTrainer) -> Iterable[tuple[str, torch.Tensor]]:
    if trainer.zero_optimizer is None:
        return optimizer_tensors(trainer.model, trainer.optimizer)
    return zero_tensors(trainer.model, trainer.zero_optimizer)


def write_adapter(folder: Path, snapshot: AdapterSnapshot) -> None:
    """Write what plain PEFT loads, and the optimizer beside it."""
    write_safetensors(folder / WEIGHTS, snapshot.adapter)
    snapshot.config.save_pretrained(str(folder))
    if snapshot.optimizer is not None:
        write_safetensors(folder / OPTIMIZER, snapshot.optimizer)


def write_model(folder: Path, trainer: RankZeroTrainer) -> None:
    """Write all weights and the optimizer of full fine-tuning, straight from the model.

    No copy is made on the host first, so training must wait. Ranks: rank 0, without DeepSpeed.
    """
    trainer.model.save_pretrained(folder)
    kept = dict(optimizer_tensors(trainer.model, trainer.optimizer))
    write_safetensors(folder / OPTIMIZER, kept)


def gather_ranks(trainer: RankZeroTrainer) -> Tensors:
    """Return what every rank keeps for itself, as RANK/NAME, on rank 0; elsewhere nothing."""
    of_ranks = trainer.host.to_rank_zero(trainer.own_tensors())
    return {
        f"{rank}/{name}": tensor
        for rank, tensors in enumerate(of_ranks)
        for name, tensor in tensors.items()
    }


def split_ranks(tensors: Mapping[str, torch.Tensor]) -> list[Tensors]:
    """Return each rank's own tensors: the way back from `gather_ranks`."""
    ranks: dict[int, Tensors] = {}
    for key, tensor in tensors.items():
        rank, _, name = key.partition("/")
        ranks.setdefault(int(rank), {})[name] = tensor
    return [ranks[rank] for rank in sorted(ranks)]


class TokenizerFiles:
    """The tokenizer's files, made once: they do not change while a model trains."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._content: dict[str, bytes] | None = None

    def write(self, folder: Path) -> None:
        """Write them into a folder."""
        if self._content is None:
            with tempfile.TemporaryDirectory() as made:
                self._tokenizer.save_pretrained(made)
                self._content = {
                    str(file.relative_to(made)): file.read_bytes()
                    for file in Path(made).rglob("*")
                    if file.is_file()
                }
        for name, content in self._content.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def _to_host(tensors: Iterable[tuple[str, torch.Tensor]], *, keep: bool) -> Tensors:
    """Copy tensors; the originals change with the next step. All are asked for on every rank."""
    copied: Tensors = {}
    for name, tensor in tensors:
        if keep:
            copied[name] = tensor.detach().to("cpu", copy=True)
    return copied
