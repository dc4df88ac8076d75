"""Where a test runs its commands: a recording, or a real API server on request.

RANKZERO_TEST_KUBECONFIG names the kubeconfig of a server for tests: nodes, volumes and namespaces
are made there, so it is never taken from KUBECONFIG. With RANKZERO_RECORD=1 as well, what is said
becomes the new recording.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.kubernetes_server.access import Access
from tests.kubernetes_server.acts import load_scenarios
from tests.kubernetes_server.exchange import read_recording, write_recording
from tests.kubernetes_server.namespace import scenario_namespace
from tests.kubernetes_server.recorder import Recorder
from tests.kubernetes_server.replay import Replay

RECORDINGS = Path(__file__).parents[1] / "recordings" / "kubernetes"
REAL_VARIABLE = "RANKZERO_TEST_KUBECONFIG"
RECORD_VARIABLE = "RANKZERO_RECORD"
_REAL_POLL_SECONDS = 1
_REPLAY_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Stage:
    """What a command needs to know of it."""

    namespace: str
    environment: dict[str, str]


@contextmanager
def stage(scenario: str, folder: Path) -> Iterator[Stage]:
    """Set the scenario up; afterwards, fail for requests that the recording does not have."""
    namespace = f"rankzero-test-{scenario}"
    real = os.environ.get(REAL_VARIABLE)
    if real is None:
        with Replay(read_recording(RECORDINGS / f"{scenario}.jsonl")) as server:
            yield _stage(folder, namespace, server.address, _REPLAY_POLL_SECONDS)
        assert not server.problems
        assert not server.unsent
        return
    access = Access.from_kubeconfig(real)
    plot = load_scenarios()[scenario]
    with scenario_namespace(access, namespace, plot):
        with Recorder(access, plot.headers) as recorder:
            yield _stage(folder, namespace, recorder.address, _REAL_POLL_SECONDS)
        assert not recorder.problems
        if os.environ.get(RECORD_VARIABLE) == "1":
            write_recording(RECORDINGS / f"{scenario}.jsonl", recorder.exchanges)


def _stage(folder: Path, namespace: str, address: str, poll_seconds: float) -> Stage:
    path = folder / "kubeconfig"
    write_kubeconfig(path, address, namespace)
    environment = {"KUBECONFIG": str(path), "RANKZERO_POLL_SECONDS": str(poll_seconds)}
    return Stage(namespace, environment)


def write_kubeconfig(path: Path, address: str, namespace: str) -> None:
    """Write the way to a server that asks for no credentials."""
    context = {"cluster": "test", "user": "test", "namespace": namespace}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": address}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": context}],
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
