"""A hardware profile: what one kind of machine, or of cluster, is. Values only; no file, no NVML.

Quantities are floats that know their unit and source. GiB is 2^30 bytes, GB is 10^9.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from launcher.quantity import ComputeCapability, Cores, GbPerSecond, Gib, Quantity, Tflops
from trainer.config_types import PositiveInt, Section

Device = Literal["cpu", "cuda", "mps"]
Link = Literal["pcie", "nvlink"]
Quantization = Literal["nf4", "none"]


class Gpu(Section):
    """One GPU of a node; null is what nobody has stated."""

    model: str
    memory_gib: Gib
    """What `torch.cuda` reports as total: usable by a process on an empty card."""
    compute_capability: ComputeCapability | None = None
    bf16: bool
    """Computes in bfloat16: compute capability 8.0 or newer."""
    peak_bf16_tflops: Tflops | None = None
    """Dense, without sparsity."""
    memory_bandwidth_gb_per_s: GbPerSecond | None = None
    link: Link | None = None
    """How the GPUs of one node reach each other."""
    link_gb_per_s: GbPerSecond | None = None
    """Both directions together, as vendors quote it."""
    host_link_gb_per_s: GbPerSecond | None = None
    """To the host's memory, both directions together: what offloading goes through."""
    nvml_names: tuple[str, ...] = ()
    """Names the driver gives this model."""


class Nvme(Section):
    """A fast local disk that parameters and optimizer state may be offloaded to."""

    gib: Gib
    path: str


class Host(Section):
    """One node without its GPUs."""

    memory_gib: Gib
    cpu_cores: Cores
    bf16: bool = False
    """The processor (or Apple's GPU) computes in bfloat16 itself."""
    shared_memory_gib: Gib | None = None
    """Size of /dev/shm."""
    disk_free_gib: Gib
    """Free space where the run directory lies."""
    nvme: Nvme | None = None
    network_gb_per_s: GbPerSecond | None = None
    """Between nodes."""


class Reserve(Section):
    """What is taken before the first tensor."""

    cuda_context_gib: Gib
    """Per process on its GPU: context and loaded kernels."""
    nccl_gib_per_process: Gib
    """Per process on its GPU, with two or more processes."""
    host_gib: Gib
    """Of a node's memory: everything that is not this run."""
    host_gib_per_process: Gib
    """Of a node's memory, per process: the imported libraries."""


class Profile(Section):
    """One kind of machine or cluster."""

    name: str
    summary: str
    device: Device
    nodes: PositiveInt = 1
    gpus_per_node: int = Field(ge=0)
    """0 on a CPU."""
    gpu: Gpu | None = None
    host: Host
    quantization: Quantization
    """What `model.quantization: auto` becomes for LoRA."""
    allow_offload: bool
    """Whether optimizer state and parameters may be kept in host memory or on NVMe."""
    reserve: Reserve

    @property
    def num_gpus(self) -> int:
        """GPUs of all nodes."""
        return self.nodes * self.gpus_per_node

    @property
    def bf16(self) -> bool:
        """Whether the device computes in bfloat16 itself (trainer.precision's rule)."""
        return self.gpu.bf16 if self.device == "cuda" and self.gpu else self.host.bf16

    @property
    def disk_free_gib(self) -> float:
        return self.host.disk_free_gib

    @property
    def nvme(self) -> Nvme | None:
        return self.host.nvme

    @property
    def network_gb_per_s(self) -> float | None:
        return self.host.network_gb_per_s


def smallest_of(gpus: Sequence[Gpu]) -> Gpu:
    """Describe a card that every one of `gpus` is at least as good as. PURE."""
    if len({gpu.model for gpu in gpus}) == 1:
        model = gpus[0].model
    else:
        model = "smallest of " + ", ".join(dict.fromkeys(gpu.model for gpu in gpus))
    links = {gpu.link for gpu in gpus}
    return Gpu(
        model=model,
        memory_gib=min(gpu.memory_gib for gpu in gpus),
        compute_capability=_least([gpu.compute_capability for gpu in gpus]),
        bf16=all(gpu.bf16 for gpu in gpus),
        peak_bf16_tflops=_least([gpu.peak_bf16_tflops for gpu in gpus]),
        memory_bandwidth_gb_per_s=_least([gpu.memory_bandwidth_gb_per_s for gpu in gpus]),
        link=links.pop() if len(links) == 1 else None if None in links else "pcie",
        link_gb_per_s=_least([gpu.link_gb_per_s for gpu in gpus]),
        host_link_gb_per_s=_least([gpu.host_link_gb_per_s for gpu in gpus]),
    )


def _least(quantities: Sequence[Quantity | None]) -> Quantity | None:
    stated = [quantity for quantity in quantities if quantity is not None]
    return min(stated) if len(stated) == len(quantities) else None


def contradictions(profile: Profile) -> list[tuple[str, str]]:
    """List what the profile's own values say against each other: (key, problem). PURE."""
    found = []
    if profile.device == "cpu" and profile.gpus_per_node:
        found.append(
            ("gpus_per_node", f"`gpus_per_node` is {profile.gpus_per_node} with `device: cpu`")
        )
    if profile.device != "cpu" and not profile.gpus_per_node:
        found.append(("gpus_per_node", f"`gpus_per_node` is 0 with `device: {profile.device}`"))
    if profile.device == "cpu" and profile.gpu:
        found.append(("gpu", f"`gpu` is {profile.gpu.model} with `device: cpu`"))
    if profile.device != "cpu" and not profile.gpu:
        found.append(("gpu", f"`gpu` is required with `device: {profile.device}`"))
    if profile.device == "mps" and profile.num_gpus > 1:
        found.append(("gpus_per_node", "`device: mps` is one GPU of one node"))
    if profile.device == "cpu" and profile.allow_offload:
        found.append(("allow_offload", "`allow_offload` is true with `device: cpu`"))
    if profile.nodes > 1 and profile.network_gb_per_s is None:
        found.append(("host", f"`host.network_gb_per_s` is required with {profile.nodes} nodes"))
    return found
