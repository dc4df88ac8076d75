"""What an optimizer keeps for each trained parameter, by the parameter's name.

Keys are KIND/NAME, such as `exp_avg/base_model.model.layers.0...lora_A.default.weight`: whole
tensors, the same whoever holds them in parts. `trainer.checkpoints.zero` does this under DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from trainer.checkpoints.tensors import SharedTensors


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that train, by name; one that has two names comes once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield everything the optimizer keeps, of any kind of optimizer; nothing is copied."""
    # Not state_dict(): bitsandbytes wraps what it keeps there.
    for name, parameter in trained_parameters(model).items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                yield f"{kind}/{name}", _to_tensor(value, kind)


def restore_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, saved: SharedTensors
) -> None:
    """Give the optimizer what it kept. Ranks: collective."""
    kinds: dict[str, list[str]] = {}
    for key in saved.names():
        kind, _, name = key.partition("/")
        kinds.setdefault(name, []).append(kind)
    state: dict[int, dict[str, Any]] = {
        index: {kind: _from_tensor(saved.get(f"{kind}/{name}")) for kind in kinds[name]}
        for name, index in _indices(model, optimizer).items()
        if name in kinds
    }
    groups = optimizer.state_dict()["param_groups"]  # today's settings, not those of the save
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _indices(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Map names to the numbers that `Optimizer.state_dict` gives parameters: their order."""
    ordered = [id(p) for group in optimizer.param_groups for p in group["params"]]
    number = {parameter: index for index, parameter in enumerate(ordered)}
    return {name: number[id(p)] for name, p in trained_parameters(model).items()}


def _to_tensor(value: Any, kind: str) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, (int, float)):
        # 64 bits mark a Python number: no optimizer keeps 0-dimensional tensors of that kind.
        return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
    raise TypeError(f"the optimizer keeps {kind!r} as {type(value).__name__}: no tensor, no number")


def _from_tensor(tensor: torch.Tensor) -> Any:
    is_number = tensor.ndim == 0 and tensor.dtype in (torch.int64, torch.float64)
    return tensor.item() if is_number else tensor
