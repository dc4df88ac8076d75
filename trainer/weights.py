"""Trained weights to and from a folder: the adapter of a LoRA run, the model of a full one.

Ranks: all of these are collective (ZeRO-3 gathers); rank 0 alone touches the files it writes.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file

from trainer.training import RankZeroTrainer


def write_weights(trainer: RankZeroTrainer, folder: Path) -> None:
    """Write what was trained, with the tokenizer, in the libraries' own formats."""
    model = trainer.model
    if isinstance(model, PeftModel) or not trainer.is_deepspeed_enabled:
        state = None
    else:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    with _gathered(trainer, writes=False):
        if trainer.world.is_rank_zero:
            temporary = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(temporary, ignore_errors=True)
            model.save_pretrained(temporary, state_dict=state)
            trainer.processing_class.save_pretrained(temporary)
            for file in temporary.iterdir():
                file.chmod(0o644)  # safetensors writes weights as 0600, hidden from a container
            _replace_folder(temporary, folder)
    trainer.accelerator.wait_for_everyone()


def load_weights(trainer: RankZeroTrainer, folder: Path) -> None:
    """Put weights written by `write_weights` back into the model being trained."""
    state = _read_tensors(folder)
    with _gathered(trainer, writes=True):
        if isinstance(trainer.model, PeftModel):
            set_peft_model_state_dict(trainer.model, state)
        else:
            # Tied weights are stored once, so a name may be missing.
            trainer.model.load_state_dict(state, strict=False)


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def _gathered(trainer: RankZeroTrainer, *, writes: bool) -> AbstractContextManager[Any]:
    """Under ZeRO-3, make the trained parameters whole for a moment; elsewhere do nothing."""
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    if not any(hasattr(p, "ds_id") for p in parameters):
        return nullcontext()
    import deepspeed  # slow to import, and absent on macOS

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
        parameters, modifier_rank=0 if writes else None
    )
    return context


def _replace_folder(new: Path, target: Path) -> None:
    """Put `new` where `target` is; a reader sees one or the other, or for an instant none."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
