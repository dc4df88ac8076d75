"""Which machines a profile's pods may run on, and how their GPUs talk. PURE."""

from __future__ import annotations

import math
from typing import Any

from launcher.kubernetes.names import selector_labels
from launcher.profile import Profile

# NVIDIA's GPU feature discovery labels nodes with what they have.
# Source: github.com/NVIDIA/k8s-device-plugin, docs/gpu-feature-discovery, "Labels".
_GPU_PRESENT = "nvidia.com/gpu.present"
_GPU_MEMORY = "nvidia.com/gpu.memory"  # MiB of one GPU
_GPU_GENERATION = "nvidia.com/gpu.compute.major"
_GPU_COUNT = "nvidia.com/gpu.count"
_GPU_PRODUCT = "nvidia.com/gpu.product"
SAME_CARD = 0.97
"""Drivers keep a little of a card's memory; `rankzero train` allows as much."""
_FAST_NETWORK_GB_PER_S = 12.5
"""100 Gbit/s: from there on one socket is the bottleneck. Source: NCCL user guide, environment
variables, NCCL_NSOCKS_PERTHREAD ("for generic 100G networks, this value can be set to 4")."""


def node_selector(profile: Profile) -> dict[str, str]:
    """Return the labels a node must have."""
    gpus = {_GPU_PRESENT: "true"} if profile.device == "cuda" else {}
    return {"kubernetes.io/os": "linux", **gpus}


def tolerations(profile: Profile) -> list[dict[str, str]]:
    """Return the taints of GPU nodes that keep other pods away; nothing on a CPU."""
    if profile.device != "cuda":
        return []
    return [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def affinity(profile: Profile, name: str, nodes: int) -> dict[str, Any]:
    """Return which nodes fit, and how a run's pods lie to each other: one a node, close by."""
    found: dict[str, Any] = {}
    if profile.gpu is not None:
        found["nodeAffinity"] = _gpu_affinity(profile)
    if nodes > 1:
        same_run = {"labelSelector": {"matchLabels": selector_labels(name)}}
        found["podAntiAffinity"] = {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {**same_run, "topologyKey": "kubernetes.io/hostname"}
            ]
        }
        found["podAffinity"] = {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 100,
                    "podAffinityTerm": {**same_run, "topologyKey": "topology.kubernetes.io/zone"},
                }
            ]
        }
    return found


def _gpu_affinity(profile: Profile) -> dict[str, Any]:
    """Ask for cards at least as good as the profile's, and prefer exactly these.

    Node affinity has "greater than", not "at least".
    """
    gpu = profile.gpu
    assert gpu is not None
    memory_mib = math.floor(SAME_CARD * gpu.memory_gib * 1024)
    wanted = [
        {"key": _GPU_MEMORY, "operator": "Gt", "values": [str(memory_mib - 1)]},
        {"key": _GPU_COUNT, "operator": "Gt", "values": [str(profile.gpus_per_node - 1)]},
    ]
    if gpu.compute_capability is not None:
        before = int(gpu.compute_capability) - 1
        wanted.append({"key": _GPU_GENERATION, "operator": "Gt", "values": [str(before)]})
    required = {"nodeSelectorTerms": [{"matchExpressions": wanted}]}
    found: dict[str, Any] = {"requiredDuringSchedulingIgnoredDuringExecution": required}
    if gpu.nvml_names:
        products = sorted(name.replace(" ", "-") for name in gpu.nvml_names)
        exactly = {"key": _GPU_PRODUCT, "operator": "In", "values": products}
        found["preferredDuringSchedulingIgnoredDuringExecution"] = [
            {"weight": 100, "preference": {"matchExpressions": [exactly]}}
        ]
    return found


def nccl_environment(profile: Profile, nodes: int, processes_per_node: int) -> dict[str, str]:
    """Return NCCL's variables for a run on this hardware; its own choices stand for the rest."""
    if profile.device != "cuda" or nodes * processes_per_node == 1:
        return {}
    found = {"NCCL_DEBUG": "WARN"}
    network = profile.network_gb_per_s
    if nodes > 1 and network is not None and network >= _FAST_NETWORK_GB_PER_S:
        # Used only where NCCL finds no RDMA device in the pod and falls back to sockets.
        found |= {"NCCL_NSOCKS_PERTHREAD": "4", "NCCL_SOCKET_NTHREADS": "4"}
    return found
