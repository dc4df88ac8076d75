"""Which profile this machine is, and why: the driver, the host and the environment joined."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.gpus import GpuReport, SeenGpu, read_gpus, select_visible
from launcher.host import HostFacts, read_host
from launcher.nvml import Nvml, load_nvml
from launcher.profile import Gpu, Host, Profile, Quantization, smallest_of
from launcher.profile_file import HardwareTable, hardware_table, load_profile, shipped_profiles
from launcher.quantity import Quantity

DETECTED = "detected"
# Below this a 7B model in 16 bits and its activations no longer fit one card: cards sold as 32 GB
# and less. An A100 of 40 GB has 39.4 GiB.
_NF4_BELOW_GIB = 36
# A display or an idle service holds this much; more is somebody's work.
_IN_USE_GIB = 0.5
# The smallest share of the memory Metal recommends to use (recommendedMaxWorkingSetSize).
_METAL_SHARE = 2 / 3
# Two readings of the same card differ by what its driver keeps: shipped numbers are the smallest.
_SAME_CARD = 0.995


@dataclass(frozen=True)
class Detection:
    """A profile, and the lines that say how it came about."""

    profile: Profile
    reasons: tuple[str, ...]


def resolve_profile(name_or_path: str, output: Path = Path()) -> Detection:
    """Return the profile `auto` (this machine), a shipped one or a file's.

    Raises: ConfigError when there is no such profile or its file is wrong.
    """
    if name_or_path == "auto":
        return detect(output)
    profile = load_profile(name_or_path)
    return Detection(profile, (f"profile {profile.name}: {profile.summary}",))


def detect(
    output: Path = Path(),
    *,
    nvml: Nvml | None = None,
    host: HostFacts | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Detection:
    """Look at this machine. `output` is where the run will write; the others are for tests."""
    report = read_gpus(nvml or load_nvml())
    return to_detection(report, host or read_host(output), environment, hardware_table())


def to_detection(
    report: GpuReport, facts: HostFacts, environment: Mapping[str, str], table: HardwareTable
) -> Detection:
    """Join what driver, host and environment say into a profile. PURE."""
    reasons: list[str] = [report.problem] if report.problem else []
    visible = select_visible(report.gpus, environment)
    reasons += visible.reasons
    is_mac = facts.system == "Darwin" and facts.machine == "arm64"
    gpu: Gpu | None = None
    if visible.gpus:
        device, count = "cuda", len(visible.gpus)
        gpu = _join([_to_gpu(seen, facts, table, reasons) for seen in visible.gpus], reasons)
        reasons.append(f"{count} x {gpu.model}, driver {report.driver}, CUDA {report.cuda}")
    elif is_mac:
        device, count, gpu = "mps", 1, _apple_gpu(facts)
        reasons.append(f"Apple GPU (MPS) with {gpu.memory_gib:.1f} GiB of the machine's memory")
    else:
        device, count = "cpu", 0
        why = "no GPU is visible" if report.gpus else "no GPU found"
        reasons.append(f"{why}: a local CPU run")
    host = _to_host(facts, is_mps=device == "mps")
    reasons += _host_reasons(facts)
    quantization: Quantization = "none"
    if gpu and device == "cuda" and count == 1 and gpu.memory_gib < _NF4_BELOW_GIB:
        quantization = "nf4"
        reasons.append(
            f"one GPU of {gpu.memory_gib:.1f} GiB (less than {_NF4_BELOW_GIB}): "
            "frozen base weights in 4 bits unless the config says otherwise"
        )
    profile = Profile.model_validate(
        {
            "name": DETECTED,
            "summary": f"this machine: {count} x {gpu.model}" if gpu else "this machine: CPU only",
            "device": device,
            "gpus_per_node": count,
            "gpu": gpu,
            "host": host,
            "quantization": quantization,
            "allow_offload": device == "cuda" and count > 1,
            "reserve": table.reserve,
        }
    )
    return Detection(profile, tuple(reasons))


def closest_shipped(profile: Profile) -> Profile | None:
    """Return the largest shipped profile that this machine is at least as good as."""
    fitting = [shipped for shipped in shipped_profiles() if _is_enough(profile, shipped)]
    return max(fitting, key=_size, default=None)


def _is_enough(profile: Profile, shipped: Profile) -> bool:
    if shipped.device != profile.device or shipped.nodes > profile.nodes:
        return False
    if not shipped.gpu or not profile.gpu:
        return shipped.gpu is profile.gpu
    return (
        profile.gpus_per_node >= shipped.gpus_per_node
        and profile.gpu.memory_gib >= _SAME_CARD * shipped.gpu.memory_gib
        and _generation(profile.gpu) >= _generation(shipped.gpu)
    )


def _size(profile: Profile) -> tuple[int, int, int]:
    gpu = profile.gpu
    if gpu is None:
        return 0, 0, 0
    # Cards sold with the same memory differ by a few hundred MiB, which makes none the larger.
    return profile.num_gpus, round(gpu.memory_gib / 10), _generation(gpu)


def _generation(gpu: Gpu) -> int:
    return int(gpu.compute_capability or 0)


def _to_gpu(seen: SeenGpu, facts: HostFacts, table: HardwareTable, reasons: list[str]) -> Gpu:
    """Describe one GPU: memory as the driver says, rates from the table when the model is known."""
    known = next((gpu for gpu in table.gpus.values() if seen.name in gpu.nvml_names), None)
    if known is None:
        reasons.append(
            f"GPU {seen.index} ({seen.name}) is not in the hardware table: "
            "its memory is known, its speed is not"
        )
    values = known.model_dump(exclude={"nvml_names"}, mode="python") if known else {}
    # mode="python" keeps quantities as they serialise: {value, unit, source}.
    values.update(
        model=seen.name,
        memory_gib=_usable_memory(seen, facts, reasons),
        bf16=(seen.compute_capability or 0) >= 8,
    )
    if seen.compute_capability is not None:
        values["compute_capability"] = _from_nvml(seen.compute_capability, "major.minor")
    return Gpu.model_validate(values)


def _usable_memory(seen: SeenGpu, facts: HostFacts, reasons: list[str]) -> Quantity:
    if seen.memory_gib is None:
        reasons.append(
            f"GPU {seen.index} ({seen.name}) shares the host's memory: "
            f"{facts.memory_available_gib:.1f} GiB are available"
        )
        return Quantity(facts.memory_available_gib, "GiB", "available host memory, shared by both")
    free = seen.memory_gib if seen.free_gib is None else seen.free_gib
    taken = seen.memory_gib - free
    if taken <= _IN_USE_GIB:
        return _from_nvml(seen.memory_gib, "GiB")
    reasons.append(
        f"GPU {seen.index} ({seen.name}) is in use: {free:.1f} of {seen.memory_gib:.1f} GiB are "
        "free, and only those are planned with"
    )
    return _from_nvml(free, "GiB")


def _from_nvml(value: float, unit: str) -> Quantity:
    return Quantity(value, unit, "measured with NVML")


def _join(gpus: Sequence[Gpu], reasons: list[str]) -> Gpu:
    models = list(dict.fromkeys(gpu.model for gpu in gpus))
    joined = smallest_of(gpus)
    if len(models) > 1:
        reasons.append(
            f"GPUs differ ({', '.join(models)}): every rank does an equal share, "
            f"so the smallest counts ({joined.memory_gib:.1f} GiB)"
        )
    return joined


def _apple_gpu(facts: HostFacts) -> Gpu:
    share = Quantity(
        facts.memory_gib * _METAL_SHARE,
        "GiB",
        "two thirds of the memory, the smallest share Metal recommends; "
        "torch.mps.recommended_max_memory() tells the exact one",
    )
    return Gpu(model=f"Apple {facts.machine}", memory_gib=share, bf16=_has_macos_14(facts))


def _has_macos_14(facts: HostFacts) -> bool:
    major = facts.macos_version.partition(".")[0]
    return major.isdecimal() and int(major) >= 14


def _to_host(facts: HostFacts, *, is_mps: bool) -> Host:
    shared = facts.shared_memory_gib
    return Host(
        memory_gib=Quantity(facts.memory_gib, "GiB", f"measured: {facts.memory_source}"),
        cpu_cores=Quantity(facts.cpu_cores, "cores", f"measured: {facts.cores_source}"),
        bf16=_has_macos_14(facts) if is_mps else facts.bf16,
        shared_memory_gib=(
            None if shared is None else Quantity(shared, "GiB", "measured: size of /dev/shm")
        ),
        disk_free_gib=Quantity(facts.disk_free_gib, "GiB", f"measured: free at {facts.disk_path}"),
    )


def _host_reasons(facts: HostFacts) -> list[str]:
    reasons = [
        f"host: {facts.memory_gib:.1f} GiB ({facts.memory_source}), "
        f"{facts.memory_available_gib:.1f} GiB of it free; "
        f"{facts.cpu_cores:g} cores ({facts.cores_source})",
        f"disk: {facts.disk_free_gib:.1f} GiB free at {facts.disk_path}",
    ]
    if facts.shared_memory_gib is not None:
        reasons.append(f"/dev/shm: {facts.shared_memory_gib:.2f} GiB")
    return reasons
