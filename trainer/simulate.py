"""One training step without weights, data or memory: every storage's life is followed.

The model is real code under `FakeTensorMode`: tensors have shapes and no content. On top of it a
dispatch mode counts the bytes of every storage from birth to death, which is what an allocator
without rounding would hold. (`torch.distributed._tools.MemTracker` fails on frozen parameters.)

Letters: T tokens of the micro-batch, L labelled positions in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.data.collate import MicroBatch
from trainer.loss import LossPlan, summed_loss
from trainer.simulated_kernels import gemm_4bit, kernels_of


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages made while it is active, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = 0
        self.peak = 0
        """Since the phase began."""
        self._highest_before = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.follow(*(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)))
        if func is gemm_4bit():
            # Its CUDA kernel for many rows writes the whole matrix out in the compute dtype.
            rows, columns = args[2]
            self.peak = max(self.peak, self.current + rows * columns * args[0].element_size())
        return result

    @property
    def highest(self) -> int:
        """Peak of all phases."""
        return max(self._highest_before, self.peak)

    def start_phase(self) -> int:
        """Measure the peak anew from here, and return what is alive."""
        self._highest_before = self.highest
        self.peak = self.current
        return self.current

    def follow(self, *tensors: torch.Tensor) -> None:
        """Count these tensors' storages from now on; results of operations come by themselves."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = id(storage)
            if key in self._alive:
                continue
            size = storage.nbytes()
            self._alive[key] = size
            self.current += size
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.current -= self._alive.pop(key)


@dataclass(frozen=True)
class StepMemory:
    """Peaks of one micro-batch above what stays (weights, gradients). Unit: bytes."""

    saved: int
    """Alive between the layers and the head."""
    forward: int
    head: int
    """From the head's input to that input's gradient: projection and loss, both ways."""
    backward: int
    """Of the layers."""
    embedding: int
    """From the gradient of the first layer's input on: the embeddings' own, where they train."""

    @property
    def peak(self) -> int:
        return max(self.forward, self.head, self.backward, self.embedding)


@contextmanager
def simulation(device_type: str) -> Iterator[MemoryTracker]:
    """Make tensors without content, their bytes counted; `cuda` keeps what CUDA's kernels keep.

    The tensors are CPU ones all the same: a build without CUDA can do no more.
    """
    tracker = MemoryTracker()
    # The tracker is entered last, and so is the first to be asked.
    with FakeTensorMode(allow_non_fake_inputs=True), tracker, kernels_of(device_type):
        yield tracker


def materialize(model: torch.nn.Module) -> None:
    """Give a model built on the meta device tensors of the active simulation, gradients included.

    Steady state: after the first micro-batch of a run every gradient exists.
    """
    made: dict[int, torch.Tensor] = {}  # tied weights stay tied
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = _like(tensor)
                store[name] = made[id(tensor)]  # type: ignore[assignment]
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)


def _like(tensor: torch.Tensor) -> torch.Tensor:
    if type(tensor).__name__ in ("Params4bit", "Int8Params"):
        from trainer.simulated_quantization import quantized_like

        return quantized_like(tensor)
    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def simulate_step(
    model: torch.nn.Module,
    tracker: MemoryTracker,
    *,
    num_tokens: int,
    num_labels: int,
    autocast: torch.dtype | None,
    loss_plan: LossPlan,
) -> StepMemory:
    """Run one micro-batch forward and backward. `autocast`: the dtype Accelerate would enter."""
    micro_batch = MicroBatch(
        torch.zeros(1, num_tokens, dtype=torch.int64),
        torch.zeros(1, num_tokens, dtype=torch.int64),
        torch.zeros(num_labels, dtype=torch.int64),
        torch.zeros(num_labels, dtype=torch.int64),
        torch.tensor([0, num_tokens], dtype=torch.int32),
    )
    model.train()
    base = tracker.start_phase()
    in_pieces = loss_plan.way == "chunked"
    phases = _Phases(tracker, base, in_pieces)
    head = model.get_output_embeddings()  # type: ignore[operator]
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    hooks = [
        head.register_forward_pre_hook(phases.enter_head),
        embeddings.register_forward_hook(phases.leave_embeddings),
    ]
    try:
        loss = summed_loss(_as_accelerate(model, autocast), micro_batch, loss_plan)
        if in_pieces:
            phases.leave_head()
        loss.backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
    return phases.end()


def simulate_training(
    model: torch.nn.Module,
    tracker: MemoryTracker,
    *,
    num_tokens: int,
    num_labels: int,
    autocast: torch.dtype | None,
    loss_plan: LossPlan,
    multi_tensor: bool,
) -> int:
    """Run one whole step of two micro-batches with AdamW; return the peak, weights included.

    `multi_tensor`: update all parameters at once, torch's default on CUDA.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, foreach=multi_tensor)
    optimizer.step()  # the moments appear with the first step; this is a later one
    tracker.start_phase()
    for _ in range(2):
        simulate_step(
            model,
            tracker,
            num_tokens=num_tokens,
            num_labels=num_labels,
            autocast=autocast,
            loss_plan=loss_plan,
        )
    optimizer.step()
    return tracker.highest


class _Phases:
    """Where one step passes from the layers to the head, and back."""

    def __init__(self, tracker: MemoryTracker, base: int, in_pieces: bool) -> None:
        self.tracker, self.base, self.in_pieces = tracker, base, in_pieces
        self.saved = self.forward = self.head = self.backward = 0
        self.is_in_head = False

    def leave_embeddings(self, module: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(self.return_to_embeddings)  # type: ignore[no-untyped-call]

    def enter_head(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if self.is_in_head:
            return
        self.is_in_head = True
        self.forward = self.tracker.peak - self.base
        self.saved = self.tracker.start_phase() - self.base
        if inputs[0].requires_grad and not self.in_pieces:
            inputs[0].register_hook(self.leave_head)  # type: ignore[no-untyped-call]

    def leave_head(self, _: torch.Tensor | None = None) -> None:
        self.head = self.tracker.peak - self.base
        self.tracker.start_phase()

    def return_to_embeddings(self, _: torch.Tensor) -> None:
        self.backward = self.tracker.peak - self.base
        self.tracker.start_phase()

    def end(self) -> StepMemory:
        last = self.tracker.peak - self.base
        return StepMemory(
            saved=self.saved,
            forward=self.forward,
            head=self.head or last,
            backward=self.backward or last,
            embedding=last if self.backward else 0,
        )


def _as_accelerate(model: torch.nn.Module, autocast: torch.dtype | None) -> Any:
    """Wrap as `Accelerator.prepare_model` does for mixed precision."""
    if autocast is None:
        return model

    def forward(**inputs: Any) -> Any:
        with torch.autocast("cpu", dtype=autocast):
            return model(**inputs)

    return convert_outputs_to_fp32(forward)
