"""Which attention a model uses, and why."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from trainer.config import ModelConfig
from trainer.errors import EnvironmentProblem
from trainer.kernels.packed_attention import PACKED, why_not_packed
from trainer.precision import ComputePrecision

_PACKAGES = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3"}


def choose_attention(
    config: ModelConfig,
    device_type: str,
    precision: ComputePrecision,
    architecture: PreTrainedConfig,
) -> tuple[str | None, str]:
    """Decide the attention implementation and say why; None leaves it to the model.

    Raises: EnvironmentProblem for a named one this machine, or this model, cannot run.
    """
    named, model_class = config.attention, _model_class(architecture)
    if named == "auto":
        return _fastest(device_type, precision, architecture, model_class)
    if named == PACKED:
        _require_packed(why_not_packed(architecture, model_class, device_type, precision))
    if named == "flex_attention" and device_type != "cuda":
        raise EnvironmentProblem(
            f"model.attention: flex_attention needs CUDA, and this run is on {device_type}",
            rule="flex attention trains through kernels compiled for an NVIDIA GPU",
            fix="set model.attention to auto or sdpa",
        )
    if named in _PACKAGES:
        installed = {
            "flash_attention_2": is_flash_attn_2_available(),
            "flash_attention_3": is_flash_attn_3_available(),
        }[named]
        _require_flash(named, installed, device_type, precision)
    return named, "set in the config"


def _fastest(
    device_type: str,
    precision: ComputePrecision,
    architecture: PreTrainedConfig,
    model_class: Any,
) -> tuple[str | None, str]:
    has_flash = bool(model_class and model_class._supports_flash_attn)
    if device_type == "cuda" and precision != "fp32" and has_flash and is_flash_attn_2_available():
        return "flash_attention_2", "flash-attn is installed"
    reason = why_not_packed(architecture, model_class, device_type, precision)
    if reason:
        # Left to transformers (None): sdpa, or eager for the few models without it.
        return None, f"not packed: {reason}"
    return PACKED, "no mask; each example of a row by itself"


def simulated_attention(config: ModelConfig, architecture: PreTrainedConfig) -> str | None:
    """Choose what keeps the same tensors on the CPU as the real choice keeps on any device."""
    if config.attention in ("sdpa", "eager"):
        return config.attention
    # Flash kernels save what ours does: queries, keys, values and log-sums.
    reason = why_not_packed(architecture, _model_class(architecture), "cpu", "bf16")
    return None if reason else PACKED


def _model_class(architecture: PreTrainedConfig) -> Any:
    """Look the architecture's class up; None for unknown (remote) code."""
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(architecture), None)
    # A few configs map to several classes; those are not causal language models first.
    return known if isinstance(known, type) else None


def _require_packed(problem: str) -> None:
    if problem:
        raise EnvironmentProblem(
            f"model.attention: packed cannot be used: {problem}",
            rule="packed attention is causal, without dropout or caps, through transformers' "
            "attention interface; on CUDA in bf16 or fp16",
            fix="set model.attention to auto or sdpa",
        )


def _require_flash(name: str, installed: bool, device_type: str, precision: str) -> None:
    problem = ""
    if device_type != "cuda":
        problem = f"cannot run on {device_type}"
    elif not installed:
        problem = f"needs the package {_PACKAGES[name]}, which is not installed"
    elif precision == "fp32":
        problem = "cannot compute in fp32"
    if problem:
        raise EnvironmentProblem(
            f"model.attention: {name} {problem}",
            rule="flash attention needs an NVIDIA GPU, its package, and bf16 or fp16",
            fix="set model.attention to auto or sdpa",
        )
