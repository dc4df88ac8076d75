"""The NVIDIA GPUs of this machine, as the driver describes them; no torch, no CUDA context.

Source: NVML API reference (nvmlMemory_v2_t, MIG device handles); CUDA programming guide 5.2,
CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.nvml import Nvml

_GIB = 2**30
# NVML_ERROR_LIBRARY_NOT_FOUND: there is no NVIDIA driver here, which is no fault.
_NO_LIBRARY = 12
_MIG_ENABLED = 1


@dataclass(frozen=True)
class SeenGpu:
    """One GPU, or one MIG slice of one."""

    index: int
    name: str
    uuid: str
    memory_gib: float | None
    """Usable by a process on an empty card; None when it shares the host's memory."""
    free_gib: float | None
    compute_capability: float | None
    is_slice: bool = False
    has_mig: bool = False
    slices: tuple[SeenGpu, ...] = ()


@dataclass(frozen=True)
class GpuReport:
    """What the driver said."""

    gpus: tuple[SeenGpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    """Newest CUDA version the driver runs."""
    problem: str | None = None
    """Why a driver that is there does not answer."""


def read_gpus(nvml: Nvml | None) -> GpuReport:
    """Ask the driver for every GPU this process may see; never raises for a broken driver."""
    if nvml is None:
        return GpuReport(problem="the package nvidia-ml-py is not installed: GPUs cannot be seen")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        is_absent = _code(error) == _NO_LIBRARY
        return GpuReport(problem=None if is_absent else f"the NVIDIA driver is broken: {error}")
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        version = nvml.nvmlSystemGetCudaDriverVersion_v2()
        cuda = f"{version // 1000}.{version % 1000 // 10}"
        gpus = [_read_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        return GpuReport(problem=f"the NVIDIA driver is broken: {error}")
    finally:
        nvml.nvmlShutdown()
    return GpuReport(tuple(gpus), driver, cuda)


def _read_gpu(nvml: Nvml, index: int) -> SeenGpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    capability = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    try:
        has_mig = nvml.nvmlDeviceGetMigMode(handle)[0] == _MIG_ENABLED
    except nvml.NVMLError:  # most models have no MIG
        has_mig = False
    slices = tuple(_slices(nvml, handle, index, capability)) if has_mig else ()
    return _describe(nvml, handle, index, capability, has_mig=has_mig, slices=slices)


def _slices(nvml: Nvml, parent: Any, index: int, capability: tuple[int, int]) -> Iterator[SeenGpu]:
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(parent)):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, number)
        except nvml.NVMLError:  # an unused place
            continue
        yield _describe(nvml, handle, index, capability, is_slice=True)


def _describe(
    nvml: Nvml, handle: Any, index: int, capability: tuple[int, int], **more: Any
) -> SeenGpu:
    total, free = _memory(nvml, handle)
    return SeenGpu(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        memory_gib=total,
        free_gib=free,
        compute_capability=float(f"{capability[0]}.{capability[1]}"),
        **more,
    )


def _memory(nvml: Nvml, handle: Any) -> tuple[float | None, float | None]:
    """Return usable and free GiB; None where memory is the host's (NVML: not supported)."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        return (memory.total - memory.reserved) / _GIB, memory.free / _GIB
    except nvml.NVMLError:
        # Version 2 is newer than some drivers, and says what the driver keeps for itself.
        pass
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError:
        return None, None
    return memory.total / _GIB, memory.free / _GIB


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _code(error: Exception) -> object:
    return vars(error).get("value")


@dataclass(frozen=True)
class Visible:
    """GPUs a CUDA process would get, in its order, and what there is to say about that."""

    gpus: tuple[SeenGpu, ...]
    reasons: tuple[str, ...]


def select_visible(gpus: Sequence[SeenGpu], environment: Mapping[str, str]) -> Visible:
    """Apply CUDA_VISIBLE_DEVICES and CUDA's rule of one MIG slice per process. PURE."""
    wanted = environment.get("CUDA_VISIBLE_DEVICES")
    reasons: list[str] = []
    if wanted is None:
        chosen = [part for gpu in gpus for part in _usable(gpu, reasons)]
    else:
        chosen = _chosen(gpus, wanted, environment, reasons)
    slices = [gpu for gpu in chosen if gpu.is_slice]
    if slices:
        if len(chosen) > 1:
            reasons.append(
                f"1 of {len(chosen)} GPUs or MIG slices is used: CUDA gives a process one slice"
            )
        chosen = slices[:1]
    return Visible(tuple(chosen), tuple(reasons))


def _chosen(
    gpus: Sequence[SeenGpu], wanted: str, environment: Mapping[str, str], reasons: list[str]
) -> list[SeenGpu]:
    chosen: list[SeenGpu] = []
    words = [word.strip() for word in wanted.split(",")] if wanted.strip() else []
    for word in words:
        found = _find(gpus, word)
        if found is None or found in chosen:
            # CUDA sees only what stands before the first entry it does not know.
            if word != "-1":
                reasons.append(
                    f"CUDA_VISIBLE_DEVICES={wanted}: `{word}` is no GPU here; "
                    "it and what follows are ignored, as CUDA does"
                )
            break
        chosen += _usable(found, reasons)
    reasons.append(f"CUDA_VISIBLE_DEVICES={wanted}: {len(chosen)} of {len(gpus)} GPUs")
    by_number = any(word.isdecimal() for word in words)
    is_ordered = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if by_number and not is_ordered and len({gpu.name for gpu in gpus}) > 1:
        reasons.append(
            "GPUs differ and CUDA numbers the fastest first, the driver by slot: "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name GPUs by UUID, to be sure which one is meant"
        )
    return chosen


def _usable(gpu: SeenGpu, reasons: list[str]) -> tuple[SeenGpu, ...]:
    if not gpu.has_mig:
        return (gpu,)
    if not gpu.slices:
        reasons.append(f"GPU {gpu.index} ({gpu.name}) is in MIG mode without a slice: not usable")
    return gpu.slices


def _find(gpus: Sequence[SeenGpu], word: str) -> SeenGpu | None:
    if word.isdecimal():
        return gpus[int(word)] if int(word) < len(gpus) else None
    if not word.startswith(("GPU-", "MIG-")):
        return None
    everything = [*gpus, *(part for gpu in gpus for part in gpu.slices)]
    # The beginning of a UUID is enough when it fits one GPU only.
    fitting = [gpu for gpu in everything if gpu.uuid.startswith(word)]
    return fitting[0] if len(fitting) == 1 else None
