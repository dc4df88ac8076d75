"""What the cluster's side of a run is: what the plan does not say. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from launcher import __version__

Kind = Literal["job", "jobset", "trainjob"]
Role = Literal["runs", "cache", "models", "data"]

DEFAULT_IMAGE = f"rankzero:{__version__}"
TOKENS_SECRET = "rankzero-tokens"
"""Its keys become variables (HF_TOKEN, WANDB_API_KEY ...) of pods that may reach the internet."""
MOUNTS: dict[Role, str] = {
    "runs": "/runs",
    "cache": "/cache",
    "models": "/models",
    "data": "/data",
}
CONFIG_FOLDER = "/etc/rankzero"
CONFIG_FILE = "run.yaml"
RENDEZVOUS_PORT = 29400


@dataclass(frozen=True)
class Cluster:
    """How a run is to be carried out on a cluster."""

    kind: Kind = "job"
    image: str = DEFAULT_IMAGE
    namespace: str | None = None
    """None: the one of kubectl's context."""
    queue: str | None = None
    """Kueue's local queue."""
    internet: bool = False
    """Whether pods may reach the Hub and trackers."""
    claims: Mapping[Role, str] = field(default_factory=dict)
    """Volumes that exist already, by what they are used for; the others are rendered."""
