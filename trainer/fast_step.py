"""What is changed in a built model for faster steps: its loss, and its layers, compiled."""

from __future__ import annotations

from dataclasses import dataclass

from peft import PeftModel
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from trainer.config import TrainingConfig
from trainer.data.store import PreparedSplit
from trainer.kernels.compiling import choose_compilation, compile_training
from trainer.loss import LossPlan, prepare_loss
from trainer.schedule import BatchPlan


@dataclass(frozen=True)
class FastStep:
    """How the loss is asked for, and what to print about it."""

    loss: LossPlan
    note: str


def make_fast(
    model: PreTrainedModel | PeftModel, training: TrainingConfig, device_type: str, tokens: float
) -> FastStep:
    """Prepare a model for training steps. `tokens`: a rank's, in the whole run.

    Raises: EnvironmentProblem when `training.compile` cannot be had.
    """
    zero_3 = is_deepspeed_zero3_enabled()
    compiles, why = choose_compilation(
        training.compile, device_type=device_type, num_tokens=tokens, is_zero_3=zero_3
    )
    if compiles:
        compile_training(model)
    # ZeRO-3 gathers the head anew for each call of it, so it is called once.
    loss = prepare_loss(model, device_type, chunked=not zero_3)
    return FastStep(loss, f"compiled: {'yes' if compiles else 'no'} ({why})")


def tokens_of_run(plan: BatchPlan, split: PreparedSplit, world_size: int) -> float:
    """Estimate the tokens one rank trains on in the whole run."""
    examples = plan.num_steps * plan.global_batch_size
    return float(examples * split.lengths.mean() / world_size)
