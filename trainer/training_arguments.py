"""The config in the words of transformers' `TrainingArguments`."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments

from trainer.config import Config
from trainer.run_directory import RunDirectory
from trainer.schedule import BatchPlan, scheduler_arguments


def to_training_arguments(
    config: Config, plan: BatchPlan, *, precision: str, device_type: str, directory: RunDirectory
) -> dict[str, Any]:
    """Translate the config into the keyword arguments of `TrainingArguments`. Pure."""
    training = config.training
    return {
        "output_dir": str(directory.path),  # Trainer itself writes nothing there
        "max_steps": plan.num_steps,
        "per_device_train_batch_size": 1,  # one StepShare
        "gradient_accumulation_steps": 1,
        "learning_rate": training.learning_rate,
        **scheduler_arguments(training),
        "warmup_steps": plan.warmup_steps,
        "optim": training.optimizer,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "adam_epsilon": training.adam_epsilon,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": device_type == "cpu",
        "seed": config.seed,
        "logging_steps": training.logging_steps,
        "logging_first_step": True,
        # It would ask the device for the loss at every step; `log` checks it where it is known.
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",  # callbacks/cadence.py decides
        "save_strategy": "no",
        "report_to": "none",  # tracking.py shows it
        "disable_tqdm": True,  # callbacks/progress.py draws
        "log_level": "error",  # Trainer sets the library's level from this
        "log_level_replica": "error",
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
        "remove_unused_columns": False,
    }


def build_training_arguments(arguments: dict[str, Any]) -> TrainingArguments:
    """Make the real thing; this joins the process group when there are several ranks."""
    built = TrainingArguments(**arguments)
    # Trainer would wrap the model in DataParallel when one process sees several GPUs.
    built._n_gpu = min(built.n_gpu, 1)
    return built
