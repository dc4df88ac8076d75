"""The gradient of every trainable parameter: ours, all fast paths on, beside plain PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.gpu.case import Case
from benchmarks.gpu.clock import give_back
from benchmarks.gpu.jobs import Job, Result
from benchmarks.gpu.ours import Stepper
from benchmarks.gpu.peers import plain_adapted, to_example
from benchmarks.gpu.rows import Row, make_rows

Gradients = dict[str, torch.Tensor]
_EXACT = 1e-4  # float32, another order of sums
_NOISE = 1.5  # times the rounding error of the plain model in bf16
_ADAPTER_SPREAD = 0.02
_WRAPPERS = ("_orig_mod.", "module.")  # of torch.compile and of data parallelism


def measure(job: Job, folder: Path) -> Result:
    """Compare one step's gradients with the plain model's in float32, row by row, no padding.

    In bf16 both are rounded: ours may be off by what the plain model in bf16 is, and half more.
    """
    case = Case.from_json(job["case"])
    rows = make_rows(case.rows, case.examples_per_step)
    device = torch.device(case.device)
    reference = _plain(case, rows, torch.float32)
    give_back(device)
    noise: Mapping[str, float] = {"all": 0.0, "worst": 0.0}
    if case.precision == "bf16":
        noise = errors(_plain(case, rows, torch.bfloat16), reference)
        give_back(device)
    found = errors(_ours(case, rows, folder), reference)
    allowed = {name: max(_EXACT, _NOISE * value) for name, value in noise.items()}
    return {
        "error": found,
        "plain_error": noise,
        "allowed": allowed,
        "parameters": len(reference),
        "equal": all(found[name] <= allowed[name] for name in found),
    }


def errors(gradients: Gradients, reference: Gradients) -> dict[str, float]:
    """Relative error |g - r| / |r| over all parameters together, and of the worst one.

    A parameter that only one side has counts as all wrong.
    """
    if gradients.keys() != reference.keys():
        return {"all": 1.0, "worst": 1.0}
    wrong = {name: _norm(gradients[name] - reference[name]) for name in reference}
    size = {name: _norm(reference[name]) for name in reference}
    total = sum(value**2 for value in size.values()) ** 0.5
    return {
        "all": sum(value**2 for value in wrong.values()) ** 0.5 / total,
        "worst": max(wrong[name] / size[name] for name in reference),
    }


def _ours(case: Case, rows: Sequence[Row], folder: Path) -> Gradients:
    stepper = Stepper(case, folder)
    model = stepper.trainer.model
    _fill_adapters(model)
    stepper.backward(_micro_batches(rows, case.micro_batch_tokens))
    return _gradients(model)


def _plain(case: Case, rows: Sequence[Row], precision: torch.dtype) -> Gradients:
    """Each row alone through the model's own loss, in the mean over the step's labels."""
    model = plain_adapted(case, precision)
    _fill_adapters(model)
    model.train()
    num_labels = sum(int(mask[1:].sum()) for _, mask in rows)
    device = torch.device(case.device)
    is_mixed = precision is torch.bfloat16
    for row in rows:
        example = {name: torch.tensor([values]) for name, values in to_example(row).items()}
        moved = {name: values.to(device) for name, values in example.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):
            loss = model(**moved, num_items_in_batch=num_labels).loss
        loss.backward()
    return _gradients(model)


def _micro_batches(rows: Sequence[Row], most_tokens: int) -> list[list[Row]]:
    """Cut the rows into several micro-batches, in order."""
    cut: list[list[Row]] = [[]]
    for row in rows:
        if cut[-1] and sum(len(ids) for ids, _ in (*cut[-1], row)) > most_tokens:
            cut.append([])
        cut[-1].append(row)
    return cut


def _fill_adapters(model: nn.Module) -> None:
    """Give every adapter values by name: B starts at zero, and A would get no gradient at all."""
    for name, parameter in _trainable(model).items():
        generator = torch.Generator().manual_seed(sum(name.encode()))
        values = torch.randn(parameter.shape, generator=generator) * _ADAPTER_SPREAD
        parameter.data.copy_(values.to(parameter.dtype))


def _gradients(model: nn.Module) -> Gradients:
    """In float32 on the host; a parameter without one gets zeros, which will not pass."""
    found = _trainable(model).items()
    return {
        name: torch.zeros(p.shape) if p.grad is None else p.grad.float().cpu() for name, p in found
    }


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for wrapper in _WRAPPERS:
                name = name.replace(wrapper, "")  # noqa: PLW2901
            found[name] = parameter
    return found


def _norm(values: torch.Tensor) -> float:
    return float(values.double().norm())
