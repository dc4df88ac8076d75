"""Where a pod may write: its own scratch, shared memory, and the volumes that outlive it. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher.kubernetes.cluster import CONFIG_FOLDER, MOUNTS, Role
from launcher.kubernetes.manifests.needs import ClaimSizes, PodNeeds, gib
from launcher.kubernetes.names import labels

SCRATCH = "/tmp"
READ_ONLY: frozenset[Role] = frozenset({"models", "data"})
# What libraries compile or keep for themselves. Not on the cache's volume: two pods would build
# DeepSpeed's kernels in one folder, whose lock a killed pod leaves behind.
SCRATCH_FOLDERS = {
    "HOME": "home",
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TRITON_CACHE_DIR": "triton",
    "XDG_CACHE_HOME": "xdg",
}


@dataclass(frozen=True)
class Claim:
    """A persistent volume as a pod uses it."""

    role: Role
    name: str


def writable_environment() -> dict[str, str]:
    """Return the variables that send every library to a place it may write to."""
    return {
        "HF_HOME": f"{MOUNTS['cache']}/huggingface",
        "RANKZERO_CACHE": f"{MOUNTS['cache']}/rankzero",
        "TMPDIR": SCRATCH,
        **{name: f"{SCRATCH}/{folder}" for name, folder in SCRATCH_FOLDERS.items()},
    }


def pod_volumes(
    config_map: str, needs: PodNeeds, claims: Sequence[Claim], nvme_path: str | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a pod's volumes and its container's mounts."""
    memory = {"medium": "Memory", "sizeLimit": gib(needs.shared_memory_gib)}
    volumes: list[dict[str, Any]] = [
        {"name": "config", "configMap": {"name": config_map}},
        {"name": "shared-memory", "emptyDir": memory},
        {"name": "scratch", "emptyDir": {"sizeLimit": gib(needs.scratch_gib)}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        {"name": "scratch", "mountPath": SCRATCH},
    ]
    if needs.nvme_gib and nvme_path:
        volumes.append({"name": "nvme", "emptyDir": {"sizeLimit": gib(needs.nvme_gib)}})
        mounts.append({"name": "nvme", "mountPath": nvme_path})
    for claim in claims:
        is_read_only = claim.role in READ_ONLY
        volumes.append(
            {"name": claim.role, "persistentVolumeClaim": {"claimName": claim.name}},
        )
        mounts.append(
            {
                "name": claim.role,
                "mountPath": MOUNTS[claim.role],
                **({"readOnly": True} if is_read_only else {}),
            }
        )
    return volumes, mounts


def claim_objects(
    name: str, claims: Sequence[Claim], sizes: ClaimSizes, nodes: int
) -> dict[str, dict[str, Any]]:
    """Return the claims to be made, by role; several nodes need a volume they can share."""
    size = {
        "runs": sizes.runs_gib,
        "cache": sizes.cache_gib,
        "models": sizes.models_gib,
        "data": sizes.data_gib,
    }
    return {
        claim.role: {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": claim.name, "labels": labels(name)},
            "spec": {
                "accessModes": ["ReadWriteMany" if nodes > 1 else "ReadWriteOnce"],
                "resources": {"requests": {"storage": gib(size[claim.role])}},
            },
        }
        for claim in claims
    }
