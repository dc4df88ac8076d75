"""DeepSpeed's JSON file: found, read, completed, and compared with the run config. Torch-free.

What the run config owns is "auto" in the file: batch sizes, precision, clipping. Optimizer and
learning-rate schedule are the run config's alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from trainer.config import Quantization, TrainingConfig
from trainer.errors import ConfigError
from trainer.shipped import shipped_folder

AUTO = "auto"
# In Trainer's terms a DeepSpeed batch is one rank's share of a step: 1 x 1 x world size.
_BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
_OWNED = {
    "optimizer": "training.optimizer, learning_rate, weight_decay and adam_*",
    "scheduler": "training.scheduler and warmup_*",
    "elasticity": "training.global_batch_size",
}
_DEVICES = ("none", "cpu", "nvme")
# Numbers of elements that decide memory; the planner reads them too.
_SIZES = (
    "reduce_bucket_size",
    "sub_group_size",
    "stage3_prefetch_bucket_size",
    "stage3_max_reuse_distance",
    "stage3_max_live_parameters",
    "stage3_param_persistence_threshold",
)


def find_deepspeed_config(name: str) -> Path:
    """Find a DeepSpeed JSON file by path, or by its name among the shipped ones.

    Raises: ConfigError naming the shipped ones.
    """
    shipped = shipped_folder("deepspeed_configs")
    by_name = shipped / Path(name).name
    for candidate in (Path(name), by_name, by_name.with_suffix(".json")):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(path.stem for path in shipped.glob("*.json")))
    raise ConfigError(
        f"training.deepspeed_config: there is no file {name}",
        rule=f"a path to a DeepSpeed JSON file, or one of {known}",
        fix="check the path, or take one of those names",
    )


def load_deepspeed_config(path: Path) -> dict[str, Any]:
    """Read the file as it is.

    Raises: ConfigError when it cannot be read, is no JSON object, or names a key twice.
    """
    rule = "a DeepSpeed config is a JSON file that holds one object"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", rule=rule, fix="check the file and its permissions"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}", rule=rule, fix="correct the JSON there") from error
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{path} holds {json.dumps(settings)[:40]}",
            rule=rule,
            fix='write { "key": value, ... }',
        )
    return settings


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is given twice")
    return dict(pairs)


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy in which everything the run config owns is there, as "auto". PURE."""
    complete = deepcopy(dict(settings))
    for key in (*_BATCH_KEYS, "gradient_clipping"):
        complete.setdefault(key, AUTO)
    for precision in ("bf16", "fp16"):
        section = complete.setdefault(precision, {})
        if isinstance(section, dict):
            section.setdefault("enabled", AUTO)
    if _device(complete, "offload_optimizer") != "none":
        # Trainer makes the optimizer; DeepSpeed would refuse any but its own.
        complete.setdefault("zero_force_ds_cpu_optimizer", False)
    return complete


def with_nvme(
    settings: Mapping[str, Any],
    nvme_path: Path,
    *,
    largest_parameter: int,
    world_size: int,
    state_count: int = 3,
) -> dict[str, Any]:
    """Return a copy that offloads to a folder, with buffers no larger than the model needs. PURE.

    Units: `largest_parameter` in elements. `state_count`: the fp32 tensors an optimizer keeps per
    parameter (Adam: master, two moments); their gradient takes one buffer more.
    Source: deepspeed 0.19, runtime/swap_tensor/partitioned_param_swapper.py (a partition that is
    larger than a buffer stops the run), partitioned_optimizer_swapper.py (`required_buffer_count`).
    """
    rendered = deepcopy(dict(settings))
    zero = rendered.get("zero_optimization", {})
    for name in ("offload_param", "offload_optimizer"):
        section = zero.get(name)
        if isinstance(section, dict) and section.get("device") == "nvme":
            section["nvme_path"] = str(nvme_path)
            if name == "offload_param":
                section["buffer_size"] = -(-largest_parameter // world_size)
            else:
                section["buffer_count"] = max(section.get("buffer_count", 4), state_count + 1)
    return rendered


def config_contradictions(
    settings: Mapping[str, Any], training: TrainingConfig, *, quantization: Quantization = "none"
) -> list[str]:
    """List what cannot work, or would overrule the run config: key, value, rule and fix. PURE."""
    checks: Iterable[Iterator[str]] = (
        _batch(settings),
        _owned(settings),
        _clipping(settings, training),
        _precision(settings, training),
        _zero(settings),
        _offload(settings),
        _quantized(settings, quantization),
    )
    return [problem for check in checks for problem in check]


def check_deepspeed_config(
    path: Path,
    settings: Mapping[str, Any],
    training: TrainingConfig,
    *,
    quantization: Quantization = "none",
) -> None:
    """Raise ConfigError, naming the file, when anything contradicts."""
    problems = config_contradictions(settings, training, quantization=quantization)
    if problems:
        raise ConfigError.from_problems(str(path), problems)


def _batch(settings: Mapping[str, Any]) -> Iterator[str]:
    for key in _BATCH_KEYS:
        value = settings.get(key, AUTO)
        # A single process, or one micro-batch, is what "auto" becomes.
        if value != AUTO and not (value == 1 and key != "train_batch_size"):
            yield (
                f"`{key}` is {json.dumps(value)}, but the batch is set by "
                'training.global_batch_size and max_tokens_per_device; make it "auto"'
            )


def _owned(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, owner in _OWNED.items():
        section = settings.get(key)
        is_off = key == "elasticity" and isinstance(section, dict) and not section.get("enabled")
        if section is not None and not is_off:
            yield f"`{key}` would overrule {owner} of the run config; take it out"


def _clipping(settings: Mapping[str, Any], training: TrainingConfig) -> Iterator[str]:
    value = settings.get("gradient_clipping", AUTO)
    if value not in (AUTO, training.max_grad_norm):
        yield (
            f"`gradient_clipping` is {json.dumps(value)}, but training.max_grad_norm is "
            f'{training.max_grad_norm}; make it "auto"'
        )


def _precision(settings: Mapping[str, Any], training: TrainingConfig) -> Iterator[str]:
    for name in ("bf16", "fp16"):
        section = settings.get(name, {})
        if not isinstance(section, dict):
            yield f'`{name}` is {json.dumps(section)}; write {{ "enabled": "auto" }}'
            continue
        enabled = section.get("enabled", AUTO)
        if enabled not in (AUTO, training.precision == name):
            yield (
                f"`{name}.enabled` is {json.dumps(enabled)}, but training.precision is "
                f'{training.precision}; make it "auto"'
            )


def _zero(settings: Mapping[str, Any]) -> Iterator[str]:
    zero = settings.get("zero_optimization", {})
    if not isinstance(zero, dict):
        yield f'`zero_optimization` is {json.dumps(zero)}; write {{ "stage": 2 }}'
        return
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        yield f"`zero_optimization.stage` is {json.dumps(stage)}; it must be 0, 1, 2 or 3"
    for name in _SIZES:
        size = zero.get(name, AUTO)
        is_number = isinstance(size, (int, float)) and not isinstance(size, bool) and size >= 0
        if size != AUTO and not is_number:
            yield (
                f"`zero_optimization.{name}` is {json.dumps(size)}; "
                'it must be a number of elements, or "auto"'
            )
    if _device(settings, "offload_optimizer") != "none" and settings.get(
        "zero_force_ds_cpu_optimizer"
    ):
        yield (
            "`zero_force_ds_cpu_optimizer` is true, but training.optimizer chooses the optimizer; "
            "make it false"
        )


def _offload(settings: Mapping[str, Any]) -> Iterator[str]:
    stage = _zero_section(settings).get("stage", 0)
    for name, lowest in (("offload_param", 3), ("offload_optimizer", 1)):
        key, device = f"zero_optimization.{name}", _device(settings, name)
        given = _zero_section(settings).get(name)
        if given is not None and not isinstance(given, dict):
            yield f'`{key}` is {json.dumps(given)}; write {{ "device": "cpu" }}'
            continue
        if device not in _DEVICES:
            yield f"`{key}.device` is {json.dumps(device)}; it must be none, cpu or nvme"
            continue
        if device == "none":
            continue
        needed = 3 if device == "nvme" else lowest
        if stage in (0, 1, 2) and stage < needed:
            yield (
                f"`{key}.device` is {device} with stage {stage}, which would ignore it; "
                f"it needs stage {needed}: raise `zero_optimization.stage`, or take it out"
            )
        section = _zero_section(settings)[name]
        if device == "nvme" and not section.get("nvme_path"):
            yield (
                f"`{key}.device` is nvme without `nvme_path`; "
                f"set `{key}.nvme_path` to a folder on a fast local disk"
            )


def _quantized(settings: Mapping[str, Any], quantization: Quantization) -> Iterator[str]:
    # Source: bitsandbytes 0.50, nn/modules.py: Linear8bitLt.forward puts its own whole copy of
    # the weight back in place of the partition. Losses stay right, memory is not saved.
    if quantization == "int8" and _zero_section(settings).get("stage") == 3:
        yield (
            "`zero_optimization.stage` is 3 with model.quantization int8, whose weights stay "
            "whole on every rank; use stage 2, or model.quantization nf4"
        )


def _zero_section(settings: Mapping[str, Any]) -> dict[str, Any]:
    zero = settings.get("zero_optimization")
    return zero if isinstance(zero, dict) else {}


def _device(settings: Mapping[str, Any], name: str) -> Any:
    section = _zero_section(settings).get(name)
    return section.get("device", "none") if isinstance(section, dict) else "none"
