"""What torch.compile makes faster: decoder layers, and the kernels between matrix products.

Compiled code is for training steps alone. Evaluation, generation and the start-up proof run the
same modules as they are, so nothing is compiled a second time for them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from trainer.errors import EnvironmentProblem

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

# Compiling takes about as long as it saves on this many tokens: SmolLM2, two cores with AMX, 35 to
# 60 s, and 0.6 ms a token (docs/log.md, half of what one core saves).
_WORTHWHILE_TOKENS = 100_000


def choose_compilation(
    wanted: bool | Literal["auto"], *, device_type: str, num_tokens: float, is_zero_3: bool
) -> tuple[bool, str]:
    """Decide whether layers are compiled, and say why. `num_tokens`: a rank's, in the whole run.

    Raises: EnvironmentProblem when asked for where it cannot work.
    """
    problem = ""
    if is_zero_3:
        problem = "ZeRO-3 gathers weights around each layer, which compiled code does not see"
    elif device_type == "cpu" and not has_compiler():
        problem = "no C++ compiler (g++ or clang++) was found"
    if wanted is True and problem:
        raise EnvironmentProblem(
            f"training.compile: {problem}",
            rule="torch.compile needs a C++ compiler on a CPU, and weights that stay in place",
            fix="set training.compile to auto or false",
        )
    if wanted != "auto":
        return wanted, "set in the config"
    if problem:
        return False, problem
    if device_type != "cpu":
        return False, f"auto compiles on a CPU only; not measured on {device_type}"
    if num_tokens < _WORTHWHILE_TOKENS:
        return False, f"about {num_tokens:,.0f} tokens a process, too few to win the time back"
    return True, f"about {num_tokens:,.0f} tokens a process"


class _Switch:
    """Whether the kernels of this process run compiled."""

    on = False


def kernel(function: Kernel) -> Kernel:
    """Run a function of tensors as it is, and compiled once `compile_training` was called."""
    compiled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if not _Switch.on:
            return function(*arguments)
        if not compiled:  # not before: the compiler takes a second to import
            compiled.append(torch.compile(function, dynamic=True))
        return compiled[0](*arguments)

    return call  # type: ignore[return-value]


def has_compiler() -> bool:
    """Whether a C++ compiler is here, which torch.compile needs for a CPU."""
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ((named,) if named else ("g++", "clang++")))


def compile_training(model: nn.Module) -> None:
    """Compile every decoder layer for training, and the kernels.

    Layers are compiled one by one: they share one compiled form, which a whole model would not,
    and gradient checkpointing, hooks and adapters work around them as ever. Sizes are symbols, so
    micro-batches may differ. What is compiled is kept on disk for the next run.
    """
    torch.compiler.config.cache_key_tag = _edition()
    _Switch.on = True
    for layer in _decoder_layers(model):
        layer.forward = _in_training(layer)


def _edition() -> str:
    """Name the code here by its content: torch's cache knows our operators by name alone."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def _decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the repeated layers of a decoder: the longest list of modules in it."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _in_training(layer: nn.Module) -> Callable[..., Any]:
    plain = layer.forward
    compiled = torch.compile(plain, dynamic=True)

    @functools.wraps(plain)
    def forward(*arguments: Any, **keywords: Any) -> Any:
        run = compiled if layer.training and torch.is_grad_enabled() else plain
        return run(*arguments, **keywords)

    return forward
