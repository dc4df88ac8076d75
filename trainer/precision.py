"""Which number format a run computes in, and why."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from trainer.config import Precision
from trainer.errors import EnvironmentProblem

ComputePrecision = Literal["fp32", "fp16", "bf16"]
DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


@dataclass(frozen=True)
class PrecisionChoice:
    """A decided precision and the reason to print beside it."""

    precision: ComputePrecision
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]


def choose_device() -> torch.device:
    """Pick CUDA, else Apple MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def probe_native_bf16(device_type: str) -> bool:
    """Tell whether the hardware itself computes in bfloat16 (emulation does not count).

    Source: NVIDIA compute capability 8.0 (Ampere) and newer; on x86 the AMX and AVX512_BF16
    instruction sets (every chip with AMX tiles has AMX-BF16); on MPS macOS 14.
    """
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    # The public torch.cpu.get_capabilities() is newer than the oldest torch we run on (2.11).
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def choose_precision(
    requested: Precision, device_type: str, *, native_bf16: bool
) -> PrecisionChoice:
    """Decide the compute precision. PURE: `native_bf16` comes from `probe_native_bf16`.

    Raises: EnvironmentProblem when a precision was named that this device cannot train in.
    """
    if requested == "auto":
        return _automatic(device_type, native_bf16)
    if requested == "fp16" and device_type == "cpu":
        raise EnvironmentProblem(
            "training.precision: fp16 cannot be used on the CPU",
            rule="fp16 mixed precision needs a GPU (loss scaling and its kernels live there)",
            fix="set training.precision to auto, bf16 or fp32",
        )
    if requested == "bf16" and device_type != "cpu" and not native_bf16:
        needs = "compute capability 8.0" if device_type == "cuda" else "macOS 14"
        raise EnvironmentProblem(
            f"training.precision: bf16 is not supported by this {device_type} device",
            rule=f"bf16 on {device_type} needs {needs} or newer",
            fix="set training.precision to auto or fp16",
        )
    reason = "set in the config"
    if requested == "bf16" and not native_bf16:
        reason += "; this CPU has no bf16 instructions and emulates it, slowly"
    return PrecisionChoice(requested, reason)


def _automatic(device_type: str, native_bf16: bool) -> PrecisionChoice:
    if device_type == "cuda":
        if native_bf16:
            return PrecisionChoice("bf16", "this GPU computes in bf16")
        return PrecisionChoice("fp16", "this GPU is older than bf16 (compute capability < 8.0)")
    if device_type == "mps":
        return PrecisionChoice("fp32", "16-bit training on MPS lacks fused kernels and is unstable")
    if native_bf16:
        return PrecisionChoice("bf16", "this CPU has bf16 instructions (AMX or AVX512_BF16)")
    return PrecisionChoice("fp32", f"this {device_type} device has no bf16 instructions")


def autocast(device_type: str, precision: ComputePrecision) -> AbstractContextManager[object]:
    """Enter mixed precision, as training does; with fp32 nothing changes.

    Needed around a bare `model(...)` or `generate` whenever some parameters (trained modules, full
    fine-tuning masters) are fp32 and others are not.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device_type, dtype=DTYPES[precision])
