"""Loss and gradients of one step beside plain PEFT in float32, one row at a time, no padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.train.peers import adapted_model, padded
from benchmarks.train.rows import Example, count_labels

Gradients = dict[str, torch.Tensor]
_WRAPPERS = ("_orig_mod.", "module.")  # of torch.compile and of data parallelism
_SPREAD = 0.01


def fill_adapters(model: nn.Module) -> None:
    """Give every adapter values by its name: B starts at zero, and A would get no gradient."""
    for name, parameter in trainable(model).items():
        generator = torch.Generator().manual_seed(sum(name.encode()))
        values = torch.randn(parameter.shape, generator=generator) * _SPREAD
        parameter.data.copy_(values.to(parameter.dtype))


def write_reference(model_folder: str, examples: Sequence[Example], path: Path) -> dict[str, Any]:
    """Write the float32 loss and gradients; return what plain PEFT in bf16 is off by."""
    loss, gradients = plain_step(model_folder, examples, torch.float32)
    torch.save({"loss": loss, "gradients": gradients}, path)
    return compare(*plain_step(model_folder, examples, torch.bfloat16), path)


def plain_step(
    model_folder: str, examples: Sequence[Example], dtype: torch.dtype
) -> tuple[float, Gradients]:
    """Each row alone through the model's own loss; the mean over the step's labels."""
    model = adapted_model(model_folder, dtype)
    fill_adapters(model)
    model.train()
    num_labels, total = count_labels(examples), 0.0
    for example in examples:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = model(**padded([example]), num_items_in_batch=num_labels).loss
        loss.backward()
        total += float(loss.detach())
    return total, take_gradients(model)


def compare(loss: float, gradients: Gradients, path: Path) -> dict[str, Any]:
    """Return relative differences from the stored reference.

    `gradients`: of all together; `worst`: of the parameter that differs most; `norm`: of the norm.
    """
    reference = torch.load(path)
    expected: Gradients = reference["gradients"]
    if set(gradients) != set(expected):
        differing = sorted(set(gradients) ^ set(expected))
        return {"problem": f"{len(differing)} other parameters train, such as {differing[0]}"}
    wrong = {name: _norm(gradients[name] - expected[name]) for name in expected}
    size = {name: _norm(expected[name]) for name in expected}
    total, own = _whole(size.values()), _whole(map(_norm, gradients.values()))
    return {
        "loss": abs(loss - reference["loss"]) / reference["loss"],
        "gradients": _whole(wrong.values()) / total,
        "worst": max(wrong[name] / size[name] for name in expected),
        "norm": abs(own - total) / total,
        "parameters": len(expected),
    }


def take_gradients(model: nn.Module) -> Gradients:
    """Copy them in float32; a parameter without one gets zeros, which will not pass."""
    return {
        name: torch.zeros(p.shape) if p.grad is None else p.grad.detach().float().clone()
        for name, p in trainable(model).items()
    }


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name what trains, without the marks of wrappers."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            bare = name
            for wrapper in _WRAPPERS:
                bare = bare.replace(wrapper, "")
            found[bare] = parameter
    return found


def _norm(values: torch.Tensor) -> float:
    return float(values.double().norm())


def _whole(norms: Any) -> float:
    return float(sum(norm**2 for norm in norms) ** 0.5)
