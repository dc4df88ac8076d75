"""The model a run trains: base weights, their storage, attention, and adapters on top."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils.import_utils import is_bitsandbytes_available

from trainer.attention import choose_attention
from trainer.config import Config
from trainer.errors import ConfigError, EnvironmentProblem
from trainer.kernels.lora import speed_up_adapters
from trainer.lora import attach_adapter, count_parameters, parameter_line
from trainer.model_limits import check_model_fits
from trainer.model_source import check_model_folder, check_revision, explaining_load, located
from trainer.precision import DTYPES, ComputePrecision
from trainer.tokenizer import LoadedTokenizer, load_tokenizer, load_training_tokenizer

__all__ = [
    "BuiltModel",
    "LoadedTokenizer",
    "build_model",
    "check_model_fits",
    "count_parameters",
    "load_tokenizer",
    "load_training_tokenizer",
    "parameter_line",
]


@dataclass(frozen=True)
class BuiltModel:
    """A model ready to train, and what was decided on the way, for the caller to print."""

    model: PreTrainedModel | PeftModel
    precision: ComputePrecision
    notes: tuple[str, ...] = ()


def build_model(config: Config, *, device: torch.device, precision: ComputePrecision) -> BuiltModel:
    """Load the base model onto `device` and prepare it for training.

    LoRA: frozen base in the compute precision or quantised, adapters in float32. Full fine-tuning:
    float32 master weights, mixed precision through autocast. `torch.manual_seed` before this call
    fixes the adapters' start.
    Raises: ConfigError, EnvironmentProblem.
    Ranks: every rank under ZeRO-3 (weights are partitioned while loading), else any.
    """
    model, notes = _load_base(config, device, precision)
    model.config.use_cache = False  # a key-value cache is memory that training never reads
    checkpointing = config.training.gradient_checkpointing is True  # "auto" is the planner's
    if checkpointing:
        # The reentrant kind drops gradients of a segment whose inputs need none, such as the
        # first layers over frozen embeddings.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if not config.lora.enabled:
        return BuiltModel(model, precision, notes)
    # In place of peft.prepare_model_for_kbit_training, which also upcasts embeddings, norms and
    # head to float32: 2.1 GB instead of 1.05 for each 128k x 4096 matrix. That guarded trained or
    # fp16-unsafe layers; here they are frozen, norms already compute in float32 inside, and
    # whatever trains is made float32 in attach_adapter.
    model.requires_grad_(False)
    if checkpointing:
        model.enable_input_require_grads()
    # DeepSpeed keeps float32 masters. Stages 1 and 2 cast the adapters themselves; stage 3 leaves
    # them, and float32 ones would make PEFT copy every layer's input to float32.
    dtype = DTYPES[precision] if is_deepspeed_zero3_enabled() else torch.float32
    adapted, target_notes = attach_adapter(
        model, config.lora, revision=config.model.revision, dtype=dtype
    )
    if not is_deepspeed_zero3_enabled():  # it gathers weights when their own module is called
        speed_up_adapters(adapted)
    return BuiltModel(adapted, precision, (*notes, *target_notes))


def _load_base(
    config: Config, device: torch.device, precision: ComputePrecision
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    source = config.model
    check_model_folder(source.name)
    check_revision(source.name, source.revision)
    place = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    quantization, quantization_notes = quantization_config(config, precision, device)
    with explaining_load(source.name, source.revision):
        architecture = AutoConfig.from_pretrained(located(source.name), **place)
    if hasattr(architecture, "quantization_config") and not config.lora.enabled:
        raise ConfigError(
            f"model.name: the weights of {source.name} are stored quantised",
            rule="full fine-tuning needs 16 or 32-bit weights",
            fix="set lora.enabled to true, or use the unquantised model",
        )
    attention, reason = choose_attention(source, device.type, precision, architecture)
    options: dict[str, Any] = {**place, "quantization_config": quantization}
    options["dtype"] = DTYPES[precision] if config.lora.enabled else torch.float32
    # ZeRO-3 places the partitions itself and refuses a device map.
    options["device_map"] = None if is_deepspeed_zero3_enabled() else {"": device}
    with explaining_load(source.name, source.revision):
        model = AutoModelForCausalLM.from_pretrained(
            located(source.name),
            config=architecture,
            attn_implementation=attention,
            **{name: value for name, value in options.items() if value is not None},
        )
    _keep_gradients_through_4_bits(model)
    used = model.config._attn_implementation
    return model, (*quantization_notes, f"attention: {used} ({reason})")


def _keep_gradients_through_4_bits(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from packing weights for inference on CPUs with AVX512-BF16.

    The first evaluation would do it for good, and the packed product has no backward: layers above
    would send no gradient to those below, without a word.
    Source: bitsandbytes 0.50, nn/modules.py (Linear4bit.forward), autograd/_functions.py.
    """
    for module in model.modules():
        if type(module).__name__ in ("Linear4bit", "LinearNF4", "LinearFP4"):
            module.support_avx512bf16_for_cpu = False


def quantization_config(
    config: Config, precision: ComputePrecision, device: torch.device
) -> tuple[BitsAndBytesConfig | None, tuple[str, ...]]:
    """Decide how the frozen base is stored."""
    kind = config.model.quantization
    if kind == "auto":
        return None, (f"quantization: none (no profile asked for it; weights in {precision})",)
    if kind == "none":
        return None, ()
    if not config.lora.enabled:
        raise ConfigError(
            f"model.quantization: {kind} with full fine-tuning",
            rule="quantised weights are frozen; only adapters train on them",
            fix="set lora.enabled to true, or model.quantization to none",
        )
    if not is_bitsandbytes_available():
        raise EnvironmentProblem(
            f"model.quantization: {kind} needs bitsandbytes, which is not installed",
            rule="4-bit and 8-bit weights are stored and read by bitsandbytes",
            fix="pip install bitsandbytes, or set model.quantization to none",
        )
    if device.type == "mps":
        raise EnvironmentProblem(
            f"model.quantization: {kind} cannot be used on Apple MPS",
            rule="training on bitsandbytes weights needs CUDA or the CPU",
            fix="set model.quantization to none",
        )
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True), ()
    dtype = DTYPES[precision]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=config.model.double_quantization,
        bnb_4bit_compute_dtype=dtype,
        # ZeRO-3 flattens all weights into one buffer of one dtype; bytes beside bf16 fail there.
        bnb_4bit_quant_storage=dtype,
    ), ()
