"""What a Job does about a pod that failed, from the exit codes of trainer.errors. PURE."""

from __future__ import annotations

from typing import Any, Literal

from trainer.errors import (
    ConfigError,
    EnvironmentProblem,
    GateFailed,
    Interrupted,
    RankZeroError,
    TrainingFailed,
)

Action = Literal["Ignore", "FailJob", "Count"]

ACTIONS: dict[type[RankZeroError], Action] = {
    Interrupted: "Ignore",  # saved: the next pod goes on
    ConfigError: "FailJob",  # another pod would read the same
    EnvironmentProblem: "FailJob",
    GateFailed: "FailJob",
    TrainingFailed: "Count",  # often hardware or a lost peer
    # An error nobody foresaw. A network volume that hiccups ends so as well as a mistake of ours
    # does, and backoffLimit bounds what the latter costs.
    RankZeroError: "Count",
}
TRIES = 3
"""Failures of the whole run before the Job gives up."""


def pod_failure_policy(container: str) -> dict[str, Any]:
    """Return the policy; a code it does not name (137: out of memory) counts, as Count does.

    Source: kubernetes.io/docs/concepts/workloads/controllers/job, "Pod failure policy": rules in
    order, the first that matches; without one, the failure counts towards backoffLimit.
    """
    disrupted = {
        "action": "Ignore",
        # Both fields have defaults in the API; written out, strict validators accept them.
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    by_action: dict[Action, list[int]] = {}
    for error, action in ACTIONS.items():
        by_action.setdefault(action, []).append(error.exit_code)
    rules = [
        {
            "action": action,
            "onExitCodes": {
                "containerName": container,
                "operator": "In",
                "values": sorted(codes),
            },
        }
        for action, codes in by_action.items()
    ]
    return {"rules": [disrupted, *rules]}


def backoff_limit(nodes: int) -> int:
    """Return how many pods may fail: when one rank dies, the other nodes end as well."""
    return TRIES * nodes
