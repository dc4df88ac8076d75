"""Trained weights to and from a folder: the adapter of a LoRA run, the model of a full one.

Ranks: all of these are collective (ZeRO-3 gathers); rank 0 alone touches files.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel, set_peft_model_state_dict

from trainer.checkpoints.tensors import SharedTensors

if TYPE_CHECKING:
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
            replace_folder(temporary, folder)
    trainer.host.wait_for_all()


def load_weights(trainer: RankZeroTrainer, folder: Path) -> None:
    """Put the weights in a folder of a run into the model being trained."""
    is_adapter = isinstance(trainer.model, PeftModel)
    pattern = "adapter_model*.safetensors" if is_adapter else "model*.safetensors"
    state = SharedTensors(folder, pattern, trainer.host).all()
    with _gathered(trainer, writes=True):
        if is_adapter:
            set_peft_model_state_dict(trainer.model, state)
        else:
            # Tied weights are stored once, so a name may be missing.
            trainer.model.load_state_dict(state, strict=False)


def replace_folder(new: Path, target: Path) -> None:
    """Put `new` where `target` is; a reader sees one or the other, or for an instant none."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def clear_temporaries(parent: Path) -> None:
    """Remove what a killed `replace_folder` left, once the folders themselves are made anew."""
    for name in ("adapter", "model", "best_model"):
        for kind in ("partial", "old"):
            shutil.rmtree(parent / f".{name}.{kind}", ignore_errors=True)


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
