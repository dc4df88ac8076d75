"""What one pod of a run asks for, and how large its volumes are, from the plan. PURE. Unit: GiB.

Memory of a pod = predicted host memory of a node (pinned and offload buffers included; on a CPU
that of its processes too) + /dev/shm, whose pages count as the pod's + headroom. Of a node that has
less for pods a pod gets all, as long as the prediction and the data workers' rows fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.fit import PLACE_NAMES
from launcher.memory import GIB, Place
from launcher.profile import Profile
from launcher.run_plan import RunPlan
from trainer.errors import EnvironmentProblem

HEADROOM_SHARE = 0.1
LEAST_HEADROOM_GIB = 4.0
"""The launcher itself, preparation before the ranks start, and page cache to read weights with."""
# Source: NCCL user guide, troubleshooting, "Docker": --shm-size=1g.
SHARED_MEMORY_GIB_PER_PROCESS = 1.0
SHARED_MEMORY_GIB_PER_WORKER = 0.5
"""Rows that data workers pass on; assumed, micro-batches are megabytes."""
USABLE_CPU_SHARE = 0.9
"""The rest is the kubelet's and the system's. GKE and EKS keep less than a tenth."""
SCRATCH_GIB = 8.0
"""Temporary files and compiled kernels; assumed, they were below 3 GiB in every run so far."""
LOGS_GIB = 1.0
GRACE_MARGIN_SECONDS = 60
"""After the ranks have saved: the supervisor's own patience (10 s), a slow volume, the exit."""
RUNS_HEADROOM_SHARE = 0.25
RUNS_LEAST_GIB = 2.0
"""Logs, metrics, curves and the attempts' own files."""
WEIGHTS_BYTES_PER_PARAMETER = 2.2
"""16 bits each, and a tenth for tokenizer and index files."""
CACHE_GIB = 10.0
"""Prepared data and facts; a data set far beyond a few GB needs its own claim."""


@dataclass(frozen=True)
class PodNeeds:
    """Requests, which are the limits too, and what the pod's own volumes may grow to."""

    gpus: int
    cpus: int
    memory_gib: float
    """Whole MiB."""
    shared_memory_gib: int
    scratch_gib: int
    nvme_gib: int
    """Of node-local disk, for ZeRO-Infinity; 0 without."""
    grace_seconds: int

    @property
    def ephemeral_gib(self) -> int:
        """Return the node's disk that the pod's volumes and logs may take together."""
        return math.ceil(self.scratch_gib + self.nvme_gib + LOGS_GIB)


@dataclass(frozen=True)
class ClaimSizes:
    """Persistent volumes of a run."""

    runs_gib: int
    cache_gib: int
    models_gib: int
    data_gib: int


def predicted_gib(plan: RunPlan, place: Place) -> float:
    """Return the plan's own figure for one place; 0 when nothing is needed there."""
    return next((use.gib for use in plan.usage if use.place == PLACE_NAMES[place]), 0.0)


def pod_needs(plan: RunPlan, profile: Profile, *, data_workers: int) -> PodNeeds:
    """Derive a pod's requests from the plan.

    Raises: EnvironmentProblem when the node that the profile describes has less for pods.
    """
    processes = plan.processes_per_node
    rows = SHARED_MEMORY_GIB_PER_WORKER * data_workers * processes
    shared = math.ceil(SHARED_MEMORY_GIB_PER_PROCESS * processes + rows)
    return PodNeeds(
        gpus=processes if plan.device == "cuda" else 0,
        cpus=max(1, math.floor(USABLE_CPU_SHARE * profile.host.cpu_cores)),
        memory_gib=_memory_gib(plan, profile, rows_gib=rows, shared_gib=shared),
        shared_memory_gib=shared,
        scratch_gib=math.ceil(SCRATCH_GIB),
        nvme_gib=math.ceil(predicted_gib(plan, "nvme")),
        grace_seconds=plan.shutdown_timeout_seconds + GRACE_MARGIN_SECONDS,
    )


def _memory_gib(plan: RunPlan, profile: Profile, *, rows_gib: float, shared_gib: float) -> float:
    needed = predicted_gib(plan, "host") + rows_gib
    if plan.device == "cpu":
        needed += predicted_gib(plan, "device") * plan.processes_per_node
    available = profile.host.memory_gib - profile.reserve.host_gib
    if needed > available:
        raise EnvironmentProblem(
            f"a pod needs {needed:.1f} GiB of memory ({rows_gib:g} of it for data workers), "
            f"a node of profile {profile.name} has {available:.1f} for pods",
            rule="rows that data workers pass on lie in /dev/shm, whose pages are the pod's memory",
            fix="use fewer training.dataloader_workers, or a profile with more memory",
        )
    used = needed - rows_gib + shared_gib
    wanted = math.ceil(used + max(LEAST_HEADROOM_GIB, HEADROOM_SHARE * used))
    return wanted if wanted <= available else math.floor(available * 1024) / 1024


def gib(size: float) -> str:
    """Write a size in GiB as Kubernetes does; a broken one in whole MiB."""
    return f"{size:.0f}Gi" if float(size).is_integer() else f"{math.floor(size * 1024)}Mi"


def claim_sizes(
    plan: RunPlan, *, total_parameters: int, is_model_downloaded: bool, data_bytes: float
) -> ClaimSizes:
    """Derive the sizes of a run's volumes from the plan and the sizes of what it reads."""
    weights = WEIGHTS_BYTES_PER_PARAMETER * total_parameters / GIB
    disk = predicted_gib(plan, "disk")
    return ClaimSizes(
        runs_gib=math.ceil(disk * (1 + RUNS_HEADROOM_SHARE) + RUNS_LEAST_GIB),
        cache_gib=math.ceil(CACHE_GIB + (weights if is_model_downloaded else 0.0)),
        models_gib=math.ceil(weights),
        data_gib=math.ceil(1 + 2 * data_bytes / GIB),
    )
