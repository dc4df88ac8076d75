"""Masters and moments under ZeRO: gathered from all ranks, and given back to their partitions.

ZeRO keeps the float32 masters and the optimizer's state of many parameters in flat partitions, one
per rank and group. DeepSpeed's `safe_get_*` and `safe_set_*` translate to whole parameters, once
the state exists; DeepSpeed itself makes it in the first step.
Source: deepspeed 0.19, utils/tensor_fragment.py, runtime/zero/{stage_1_and_2,stage3}.py,
runtime/bf16_optimizer.py (ZeRO-1 with bf16).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from trainer.checkpoints.moments import trained_parameters
from trainer.checkpoints.tensors import SharedTensors

_STEP = "step"


def keeps_whole_tensors(zero: Any) -> bool:
    """Tell whether every state of this optimizer can be gathered: ZeRO, in memory, tensor-shaped.

    `zero` is DeepSpeed's optimizer, around a torch one. 8-bit and factored states are not shaped
    like their parameter, and what is on NVMe is DeepSpeed's alone.
    """
    flats = _flat_partitions(zero)
    if not flats or any(not flat.numel() for flat in flats):
        return False
    return isinstance(zero.optimizer, (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD))


def master_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the float32 master of each trained parameter. Ranks: collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    for name, parameter in trained_parameters(model).items():
        yield name, safe_get_full_fp32_param(parameter)


def zero_tensors(model: torch.nn.Module, zero: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what `moments.optimizer_tensors` would without ZeRO. Ranks: collective."""
    from deepspeed.utils import safe_get_full_optimizer_state

    flat = _flat_partitions(zero)[0]
    kept = zero.optimizer.state.get(flat, {})
    kinds = [kind for kind, value in kept.items() if _is_like(value, flat)]
    for name, parameter in trained_parameters(model).items():
        for kind in kinds:
            yield f"{kind}/{name}", safe_get_full_optimizer_state(parameter, kind)
        if _STEP in kept:
            yield f"{_STEP}/{name}", torch.as_tensor(kept[_STEP], dtype=torch.float32)


def restore_zero(
    model: torch.nn.Module, zero: Any, masters: dict[str, torch.Tensor], saved: SharedTensors
) -> None:
    """Set masters, live parameters and moments. Ranks: collective; `masters` whole on each."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    parameters = trained_parameters(model)
    kinds = {key.partition("/")[0] for key in saved.names()}
    _make_state(zero, kinds, max((_steps(saved, name) for name in parameters), default=0.0))
    for name, parameter in parameters.items():
        safe_set_full_fp32_param(parameter, masters[name])
        for kind in sorted(kinds - {_STEP}):
            safe_set_full_optimizer_state(parameter, saved.get(f"{kind}/{name}"), kind)
    _set_live(parameters, masters)


def _make_state(zero: Any, kinds: set[str], steps: float) -> None:
    """Make the state that DeepSpeed would make in the first step, and link parameters to it."""
    if not kinds:
        return
    settings = zero.optimizer.param_groups[0]
    on_device = settings.get("fused") or settings.get("capturable")
    for flat in _flat_partitions(zero):
        state = {kind: torch.zeros_like(flat) for kind in sorted(kinds - {_STEP})}
        if _STEP in kinds:
            place = flat.device if on_device else "cpu"
            state[_STEP] = torch.tensor(steps, dtype=torch.float32, device=place)
        zero.optimizer.state[flat] = state
    if _links_lazily(zero):
        zero._lazy_init_hp_params_optimizer_state()


def _steps(saved: SharedTensors, name: str) -> float:
    """Steps the optimizer has made; one flat partition counts for all parameters in it."""
    key = f"{_STEP}/{name}"
    return float(saved.get(key)) if key in saved else 0.0


def _set_live(parameters: dict[str, torch.nn.Parameter], masters: dict[str, torch.Tensor]) -> None:
    """Copy masters into the parameters that compute: a step does it only afterwards."""
    import deepspeed

    partitioned = [p for p in parameters.values() if hasattr(p, "ds_id")]
    with (
        torch.no_grad(),
        deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0, enabled=bool(partitioned)),
    ):
        for name, parameter in parameters.items():
            parameter.data.copy_(masters[name])


def _flat_partitions(zero: Any) -> list[torch.Tensor]:
    """Return this rank's flat float32 masters, the optimizer's real parameters; none if unknown."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    if isinstance(zero, DeepSpeedZeroOptimizer_Stage3):
        return list(zero.fp32_partitioned_groups_flat)
    if isinstance(zero, DeepSpeedZeroOptimizer):
        return list(zero.single_partition_of_fp32_groups)
    if isinstance(zero, BF16_Optimizer):
        return list(zero.fp32_groups_flat_partition)
    return []


def _links_lazily(zero: Any) -> bool:
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    return not isinstance(zero, DeepSpeedZeroOptimizer_Stage3)


def _is_like(value: Any, flat: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == flat.shape
