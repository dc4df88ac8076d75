"""Ways to spread a run over processes and memories. PURE.

A strategy is a DeepSpeed config, or none (one process, or DDP), with or without activation
checkpointing. What decides memory is read from that config, the file DeepSpeed itself gets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainer.config import Config

Place = Literal["device", "cpu", "nvme"]
# DeepSpeed's own defaults where a config is silent. Source: deepspeed 0.19 runtime/zero/config.py.
_DEFAULTS = {
    "reduce_bucket_size": 5e8,
    "stage3_prefetch_bucket_size": 5e7,
    "stage3_max_reuse_distance": 1e9,
    "sub_group_size": 1e9,
}


@dataclass(frozen=True)
class Zero:
    """What DeepSpeed's `zero_optimization` section says about memory. Sizes in elements."""

    stage: int = 0
    optimizer_on: Place = "device"
    parameters_on: Place = "device"
    reduce_bucket: int = 0
    prefetch_bucket: int = 0
    reuse_distance: int = 0
    """Gathered parameters used again within so many elements are kept."""
    sub_group: int = 0
    """Of a rank's partition, updated at a time."""

    @classmethod
    def read(cls, deepspeed: Mapping[str, Any]) -> Zero:
        """Read a DeepSpeed config; "auto" counts as DeepSpeed's default."""
        section = deepspeed.get("zero_optimization", {})

        def size(name: str) -> int:
            value = section.get(name, "auto")
            return int(_DEFAULTS[name] if value == "auto" else value)

        stage = int(section.get("stage", 0))
        return cls(
            stage=stage,
            optimizer_on=_place(section, "offload_optimizer"),
            parameters_on=_place(section, "offload_param"),
            reduce_bucket=size("reduce_bucket_size"),
            prefetch_bucket=size("stage3_prefetch_bucket_size"),
            reuse_distance=size("stage3_max_reuse_distance"),
            sub_group=size("sub_group_size"),
        )


def _place(section: Mapping[str, Any], name: str) -> Place:
    device = (section.get(name) or {}).get("device", "none")
    return "device" if device == "none" else device


def saves_in_parts(config: Config, deepspeed_config: str | None, zero: Zero) -> bool:
    """Whether each rank writes its own part of a checkpoint, all into one folder.

    As trainer.checkpoints.zero finds out from the optimizer itself.
    """
    if deepspeed_config is None:
        return False
    is_on_nvme = "nvme" in (zero.optimizer_on, zero.parameters_on)
    is_whole = config.training.optimizer in ("adamw_torch", "adamw_torch_fused", "sgd")
    return not config.lora.enabled or is_on_nvme or not is_whole


@dataclass(frozen=True)
class Strategy:
    """One rung of the ladder."""

    name: str
    deepspeed_config: str | None
    zero: Zero
    checkpointing: bool
    relative_time: float
    """Estimated time of a step, one process without checkpointing being 1."""

    @property
    def label(self) -> str:
        with_or_without = "with" if self.checkpointing else "without"
        return f"{self.name}, {with_or_without} activation checkpointing"

    @property
    def is_offloaded(self) -> bool:
        return self.zero.optimizer_on != "device" or self.zero.parameters_on != "device"


# Name of a shipped DeepSpeed config -> (what people call it, time of a step relative to DDP).
# Sources of the times: ZeRO-3 against FSDP/DDP 1.0 to 1.15 over NVLink; parameter offload 2.1 and
# parameter + optimizer offload 4.8 (DeepSpeed issue 3901, Falcon-7B, 8 x A100); optimizer offload
# alone lies between and is a guess; NVMe behind that by the ratio of a disk (6 GB/s) to host memory
# over PCIe (25 GB/s). Only the order matters.
LADDER: dict[str | None, tuple[str, float]] = {
    None: ("DDP", 1.0),
    "zero2": ("ZeRO-2", 1.03),
    "zero3": ("ZeRO-3", 1.15),
    "zero3_offload_optimizer": ("ZeRO-3, optimizer in host memory", 1.7),
    "zero3_offload": ("ZeRO-3, parameters and optimizer in host memory", 4.8),
    "zero3_nvme": ("ZeRO-3, parameters and optimizer on NVMe", 15.0),
}
# Recomputing costs one more forward pass: 6N instead of 4N FLOP a token with frozen weights, 8N
# instead of 6N in full fine-tuning.
_CHECKPOINTING_TIME = {"lora": 1.5, "full": 4 / 3}


def make_strategies(
    deepspeed_configs: Mapping[str, Mapping[str, Any]],
    *,
    world_size: int,
    method: Literal["lora", "full"],
    checkpointing: tuple[bool, ...],
) -> list[Strategy]:
    """List every strategy, the fastest first. `deepspeed_configs`: shipped name -> content."""
    strategies = []
    for config, (name, time) in LADDER.items():
        if config is not None and config not in deepspeed_configs:
            continue
        for is_checkpointing in checkpointing:
            strategies.append(
                Strategy(
                    name="one process" if config is None and world_size == 1 else name,
                    deepspeed_config=config,
                    zero=Zero() if config is None else Zero.read(deepspeed_configs[config]),
                    checkpointing=is_checkpointing,
                    relative_time=time * (_CHECKPOINTING_TIME[method] if is_checkpointing else 1.0),
                )
            )
    return sorted(strategies, key=lambda strategy: strategy.relative_time)
