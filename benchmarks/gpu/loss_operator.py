"""The head and its loss alone: time, memory, and the error of the gradient against float64.

Letters: T tokens, D width of a hidden state, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig

from benchmarks.gpu.clock import GIB, give_back, time_calls
from benchmarks.gpu.jobs import Job, Result
from benchmarks.gpu.ours import build_loss
from benchmarks.gpu.random_base import random_base

_CHUNK = 512  # positions at a time in float64
_TRL_CHUNK = 8192  # words of the vocabulary at a time, TRL's own choice
Run = Callable[[], tuple[torch.Tensor, torch.Tensor]]  # loss and gradient (T, D)
Operator = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def measure(job: Job, _folder: Path) -> Result:
    """Measure every operator at every length; what is missing or does not fit says so."""
    shape, lengths, device = job["shape"], job["tokens"], torch.device(job["device"])
    results = []
    for tokens in lengths:
        for name in NAMES:
            result: Result = {"name": name, "tokens": tokens}
            try:
                is_checked = tokens == min(lengths)
                result |= _measure(name, shape, tokens, device, (job["repeats"], is_checked))
            except ModuleNotFoundError as error:
                result |= {"status": "skipped", "reason": f"{error.name} is not installed"}
            except torch.OutOfMemoryError:
                result |= {"status": "no memory", "reason": "does not fit"}
            results.append(result)
            give_back(device)
    return {"results": results}


def _measure(
    name: str,
    shape: Mapping[str, Any],
    tokens: int,
    device: torch.device,
    effort: tuple[int, bool],
) -> dict[str, Any]:
    """Forward and backward of one operator, all positions labelled, the head frozen.

    A model without layers makes the hidden states, so that ours runs as in training. `effort`:
    timed repeats, and whether to compare with float64.
    """
    repeats, is_checked = effort
    model = random_base(
        AutoConfig.for_model(**{**shape, "num_hidden_layers": 0}),
        dtype=torch.bfloat16,
        device=device,
    )
    generator = torch.Generator(device).manual_seed(tokens)
    ids, targets = torch.randint(
        3, shape["vocab_size"], (2, tokens), generator=generator, device=device
    )
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=ids[None]).last_hidden_state[0]
    if name == "ours":
        run = _ours(model, ids, targets, device)
    else:
        run = _theirs(_OPERATORS[name](), hidden, head, targets)
    result: dict[str, Any] = {"status": "ok"}
    loss, gradient = run()
    if is_checked:
        exact_loss, exact = _exact(hidden, head, targets)
        result["loss_error"] = abs(float(loss) - exact_loss) / exact_loss
        result["gradient_error"] = float((gradient.double() - exact).norm() / exact.norm())
        del exact
    del loss, gradient
    result["mib"] = _memory(run, device)
    result["seconds"] = time_calls(run, device, warm_up=2, repeats=repeats)
    return result


def _ours(model: Any, ids: torch.Tensor, targets: torch.Tensor, device: torch.device) -> Run:
    """The trainer's loss, with the gradient taken at the hidden states."""
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, _given: Any, hidden: torch.Tensor) -> torch.Tensor:
        leaf = hidden.detach().requires_grad_()
        kept[:] = [leaf]
        return leaf

    model.get_decoder().norm.register_forward_hook(keep)
    compute = build_loss(model, device)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        loss = compute(ids, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = kept[0].grad
        assert gradient is not None
        return loss.detach(), gradient[0]

    return run


def _theirs(
    operator: Operator, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor
) -> Run:
    leaf = hidden.clone().requires_grad_()

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        leaf.grad = None
        loss = operator(leaf, head, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return loss.detach(), leaf.grad

    return run


def _plain() -> Operator:
    def plain(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = functional.linear(hidden, head).float()
        return functional.cross_entropy(logits, targets, reduction="sum")

    return plain


def _liger() -> Operator:
    loss = import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss(
        reduction="sum"
    )
    return lambda hidden, head, targets: loss(head, hidden, targets)


def _trl() -> Operator:
    function = import_module("trl.kernels").ChunkedLogProbFunction

    def trl(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        found = function.apply(hidden, head, None, targets, 1.0, _TRL_CHUNK, None, 1.0, ())
        loss: torch.Tensor = -found[0].sum()
        return loss

    return trl


_OPERATORS: dict[str, Callable[[], Operator]] = {"plain": _plain, "liger": _liger, "trl": _trl}
NAMES = ("ours", *_OPERATORS)


def _exact(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """Loss and gradient in float64: softmax minus the target, times the head."""
    weight, total, gradients = head.double(), 0.0, []
    for start in range(0, len(hidden), _CHUNK):
        part, wanted = hidden[start : start + _CHUNK], targets[start : start + _CHUNK]
        logits = part.double() @ weight.T
        total += float(functional.cross_entropy(logits, wanted, reduction="sum"))
        slope = logits.softmax(-1)
        slope[torch.arange(len(wanted), device=wanted.device), wanted] -= 1
        gradients.append(slope @ weight)
    return total, torch.cat(gradients)


def _memory(run: Callable[[], object], device: torch.device) -> float | None:
    """Memory one call takes at its worst beside what is there before. Unit: MiB."""
    if device.type != "cuda":
        return None
    give_back(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / GIB * 1024
