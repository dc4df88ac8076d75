"""k8s/: what is checked in is what `rankzero render` writes, and kustomize can build it."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from launcher import planning
from launcher.commands.render import render
from tests.unit.test_kubernetes_render import recorded_facts

K8S = Path(__file__).parents[2] / "k8s"
_HOW = "python k8s/render_overlays.py writes them again"


# Not imported: no compiled copy of it may lie in a folder that becomes part of the wheel.
OVERLAYS: dict[str, list[str]] = runpy.run_path(str(K8S / "render_overlays.py"))["overlays"]()
Key = tuple[str, str, str]


def _by_name(objects: list[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    found = {
        (each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]): each
        for each in objects
    }
    assert len(found) == len(objects)
    return found


def _built(folder: Path) -> dict[Key, dict[str, Any]]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    command = [kubectl, "kustomize", str(folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _by_name(list(yaml.safe_load_all(text)))


def test_there_is_an_overlay_for_each_way() -> None:
    ways = {"single-gpu", "multi-gpu", "multi-node", "jobset", "trainjob", "kueue"}
    assert set(OVERLAYS) == ways == {path.name for path in (K8S / "overlays").iterdir()}


@pytest.fixture
def rendered(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """What the command writes for an overlay now."""
    monkeypatch.setattr(planning, "find_facts", recorded_facts)
    monkeypatch.chdir(K8S.parent)
    arguments = [*OVERLAYS[request.param], "--output", str(tmp_path)]
    ended = CliRunner().invoke(render, arguments, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return tmp_path


@pytest.mark.parametrize(("rendered", "name"), [(n, n) for n in OVERLAYS], indirect=["rendered"])
def test_overlays_are_what_render_writes(rendered: Path, name: str) -> None:
    folder = K8S / "overlays" / name / "rendered"
    assert {path.name for path in folder.iterdir()} == {path.name for path in rendered.iterdir()}
    for path in rendered.iterdir():
        ours, there = (yaml.safe_load(each.read_text()) for each in (path, folder / path.name))
        assert there == ours, f"{path.name}: {_HOW}"


@pytest.mark.parametrize(("rendered", "name"), [(n, n) for n in OVERLAYS], indirect=["rendered"])
def test_kustomize_builds_base_and_run(rendered: Path, name: str) -> None:
    objects = [
        yaml.safe_load(path.read_text())
        for path in rendered.iterdir()
        if path.name not in ("kustomization.yaml", "files-pod.yaml")
    ]
    ours = _by_name(objects)
    assert _built(K8S / "overlays" / name / "rendered") == ours
    base = _built(K8S / "base")
    assert base
    assert _built(K8S / "overlays" / name) == base | ours


def test_the_namespace_is_closed_and_strict() -> None:
    base = _built(K8S / "base")
    (space,) = [each for key, each in base.items() if key[0] == "Namespace"]
    assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    (policy,) = [each for key, each in base.items() if key[0] == "NetworkPolicy"]
    assert policy["metadata"]["namespace"] == space["metadata"]["name"]
    assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_the_example_queue_takes_what_its_overlay_asks() -> None:
    queue = _built(K8S / "queue")
    local = next(each for key, each in queue.items() if key[0] == "LocalQueue")
    cluster = next(each for key, each in queue.items() if key[0] == "ClusterQueue")
    assert local["spec"]["clusterQueue"] == cluster["metadata"]["name"]
    folder = K8S / "overlays" / "kueue" / "rendered"
    job = yaml.safe_load((folder / "job.yaml").read_text())
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]
    assert job["metadata"]["namespace"] == local["metadata"]["namespace"]
    (group,) = cluster["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    quota = {each["name"]: each["nominalQuota"] for each in flavor["resources"]}
    (container,) = job["spec"]["template"]["spec"]["containers"]
    requests = container["resources"]["requests"]
    assert set(requests) == set(group["coveredResources"]) == set(quota)
    for name, amount in requests.items():
        asked, there = (str(each).removesuffix("Gi") for each in (amount, quota[name]))
        assert job["spec"]["completions"] * int(asked) <= int(there), name
