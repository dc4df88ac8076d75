"""fp16's loss scale, in one form for torch's scaler and DeepSpeed's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.resumable import ResumableTrainer

Scale = dict[str, float]


def get_loss_scale(trainer: ResumableTrainer) -> Scale | None:
    """Return the scale and the steps since it last changed; None when nothing is scaled."""
    if not trainer.args.fp16:
        return None
    if trainer.is_deepspeed_enabled:
        scaler = trainer.zero_optimizer.loss_scaler
        if not scaler.dynamic:
            return None
        steps = scaler.cur_iter - scaler.last_overflow_iter - 1
        return {"scale": float(scaler.cur_scale), "steps": float(steps)}
    state = trainer.accelerator.scaler.state_dict()
    return {"scale": float(state["scale"]), "steps": float(state["_growth_tracker"])}


def set_loss_scale(trainer: ResumableTrainer, saved: Scale) -> None:
    """Set the scale; without one here (bf16 now) there is nothing to do.

    Source: deepspeed 0.19, runtime/fp16/loss_scaler.py: steps since an overflow are counted from
    `last_overflow_iter`, which is -1 at the beginning.
    """
    if not trainer.args.fp16:
        return
    if trainer.is_deepspeed_enabled:
        scaler = trainer.zero_optimizer.loss_scaler
        if scaler.dynamic:
            scaler.cur_scale = saved["scale"]
            scaler.cur_iter, scaler.last_overflow_iter = int(saved["steps"]), -1
        return
    scaler = trainer.accelerator.scaler
    state = scaler.state_dict() | {
        "scale": saved["scale"],
        "_growth_tracker": int(saved["steps"]),
    }
    scaler.load_state_dict(state)
