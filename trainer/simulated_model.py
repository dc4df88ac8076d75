"""The model a run would train, built from its config.json alone on the meta device."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer

from trainer.attention import simulated_attention
from trainer.config import Config
from trainer.kernels.lora import speed_up_adapters
from trainer.lora import attach_adapter
from trainer.model import quantization_config
from trainer.model_facts import Casting
from trainer.model_source import check_model_folder, check_revision, explaining_load, located
from trainer.precision import DTYPES, ComputePrecision


def load_architecture(config: Config) -> PreTrainedConfig:
    """Read config.json of the base model. Raises: ConfigError, EnvironmentProblem."""
    source = config.model
    check_model_folder(source.name)
    check_revision(source.name, source.revision)
    with explaining_load(source.name, source.revision):
        return AutoConfig.from_pretrained(
            located(source.name),
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
        )


def with_layers(architecture: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    """Copy a config with its first layers only, lists of one entry per layer cut as well."""
    small = copy.deepcopy(architecture)
    total = architecture.num_hidden_layers
    for name, value in vars(small).items():
        if isinstance(value, list) and len(value) == total and name.endswith(("types", "layers")):
            setattr(small, name, value[:num_layers])
    small.num_hidden_layers = num_layers
    return small


def build_simulated(
    config: Config,
    architecture: PreTrainedConfig,
    *,
    precision: ComputePrecision,
    casting: Casting,
    checkpointing: bool,
) -> PreTrainedModel | PeftModel:
    """Build what `trainer.model.build_model` would, on the meta device: no weights, no memory."""
    is_lora = config.lora.enabled
    dtype = DTYPES[precision]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            architecture,
            dtype=dtype if is_lora else torch.float32,
            attn_implementation=simulated_attention(config.model, architecture),
            trust_remote_code=config.model.trust_remote_code,
        )
        _quantize(model, config, precision)
        model.config.use_cache = False
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        built: Any = model
        if is_lora:
            model.requires_grad_(False)
            if checkpointing:
                model.enable_input_require_grads()
            built, _ = attach_adapter(model, config.lora)
            if casting == "autocast":  # else it may be ZeRO-3, which keeps PEFT's
                speed_up_adapters(built)
        if casting == "cast":
            _cast(built, dtype)
    return built


def _quantize(model: PreTrainedModel, config: Config, precision: ComputePrecision) -> None:
    quantization, _ = quantization_config(config, precision, torch.device("cpu"))
    if quantization is not None:
        # transformers decides which layers; the weights are made small in the simulation.
        AutoHfQuantizer.from_config(quantization).preprocess_model(model, device_map={"": "cpu"})


def _cast(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """As DeepSpeed's engine does with `module.bfloat16()`; packed weights stay what they are."""
    for parameter in model.parameters():
        if parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)
