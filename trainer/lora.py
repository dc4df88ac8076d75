"""Adapters on a base model, and the line that counts what trains."""

from __future__ import annotations

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trainer.config import LoraConfig
from trainer.errors import ConfigError
from trainer.lora_targets import (
    LoraTargets,
    check_expressions,
    check_modules_to_save,
    check_patterns,
    resolve_targets,
)


def attach_adapter(
    model: PreTrainedModel,
    config: LoraConfig,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[PeftModel, tuple[str, ...]]:
    """Freeze `model`, put adapters on it, and return it with the notes to print.

    Every trainable tensor is of `dtype` whatever the base. Without somebody else's float32 masters
    it must be float32: 16-bit weights lose small updates, and fp16 gradient scaling refuses them.
    Raises: ConfigError for targets, patterns or modules the model does not have.
    """
    targets = resolve_targets(model, config.target_modules)
    check_modules_to_save(model, config.modules_to_save)
    check_expressions("lora.rank_pattern", config.rank_pattern)
    check_expressions("lora.alpha_pattern", config.alpha_pattern)
    try:
        adapted = get_peft_model(model, to_peft_config(model, config, targets), revision=revision)
    except ValueError as error:  # PEFT's own rules, such as DoRA on a layer kind it lacks
        raise ConfigError(
            f"lora: {error}",
            rule="the combination of LoRA options must suit the model's layers",
            fix="set lora.dropout to 0: experts stored as one tensor cannot have it"
            if "lora_dropout" in str(error)
            else "change the option named above",
        ) from error
    targeted: list[str] = adapted.base_model.targeted_module_names
    check_patterns("lora.rank_pattern", config.rank_pattern, targeted)
    check_patterns("lora.alpha_pattern", config.alpha_pattern, targeted)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return adapted, targets.notes


def to_peft_config(
    model: PreTrainedModel, config: LoraConfig, targets: LoraTargets
) -> PeftLoraConfig:
    """Translate our section into PEFT's. PURE apart from looking at the model's layers."""
    names = targets.names
    saved = list(config.modules_to_save) or None
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = head is not None and head.weight is embeddings.weight
    return PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=config.r,
        # PEFT declares an int and computes with any number.
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=names if isinstance(names, str) else list(names),
        bias=config.bias,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        modules_to_save=saved,
        # A trained copy of one tied matrix would silently part it from the other.
        ensure_weight_tying=bool(saved) and is_tied,
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
        # GPT-2 stores its matrices transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count (trainable, all) parameters, as PEFT does.

    4-bit weights are counted by their true number: `Params4bit` packs two into each byte of its
    storage type. ZeRO-3 partitions are counted whole (`ds_numel`).
    """
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel()
        if count == 0 and hasattr(parameter, "ds_numel"):
            count = parameter.ds_numel
        if type(parameter).__name__ == "Params4bit":
            count *= 2 * parameter.element_size()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def parameter_line(model: nn.Module) -> str:
    """Say how much trains, in the words of PEFT's `print_trainable_parameters`."""
    trainable, total = count_parameters(model)
    percent = 100 * trainable / total
    return f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {percent:.4f}"
