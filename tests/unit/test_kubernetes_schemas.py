"""Every kind of job for every profile is valid: by Kubernetes' schemas, the CRDs', and checkov."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import planning
from launcher.profile_file import profile_names
from tests.unit.test_kubernetes_render import (
    KINDS,
    Objects,
    recorded_facts,
    render_run,
    workload,
    write_config,
)

ROOT = Path(__file__).parents[2]
CRDS = ROOT.parent / "shared" / "crds"
K8S_KINDS = {
    "Pod",
    "ConfigMap",
    "PersistentVolumeClaim",
    "NetworkPolicy",
    "Service",
    "Job",
    "Namespace",
}
# podFailurePolicy and podReplacementPolicy came with 1.26 and 1.28.
OLDEST, NEWEST = "1.29", "1.33"
# What checkov finds and stays: see the comments in launcher/kubernetes/manifests/pod.py.
EXPLAINED = {"CKV_K8S_15", "CKV_K8S_35", "CKV_K8S_43"}
EXPLAINED_OF_FILES_POD = {"CKV_K8S_8", "CKV_K8S_9", "CKV2_K8S_6"}  # see files_pod.py
MATRIX = pytest.mark.parametrize(
    ("kind", "profile", "nodes"),
    [(kind, name, nodes) for kind in KINDS for name in profile_names() for nodes in (1, 2, 4)],
)


@pytest.fixture(autouse=True)
def known_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "find_facts", recorded_facts)


def _render(folder: Path, kind: str, profile: str, nodes: int) -> Objects:
    config = write_config(folder, merge={"after_training": True})
    target = ("--profile", profile, "--nodes", str(nodes), "--kind", kind)
    more = ("--queue", "team-a", "--namespace", "ml", "--internet")
    objects = render_run(config, folder / "out", *target, *more)
    del objects["kustomization.yaml"]
    return objects


def _as_job(spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "inside"}, "spec": spec}


@MATRIX
def test_objects_are_valid_to_kubernetes(
    tmp_path: Path, kind: str, profile: str, nodes: int
) -> None:
    pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    objects = _render(tmp_path, kind, profile, nodes)
    checked = [each for each in objects.values() if each["kind"] in K8S_KINDS]
    checked.append(_as_job(workload(objects)))  # inside a JobSet it is one all the same
    assert {each["kind"] for each in checked} >= {"ConfigMap", "NetworkPolicy", "Job"}
    for each in checked:
        for version in (OLDEST, NEWEST):
            _validate(json.dumps(each), version)


@cache  # most objects are the same for every kind of job
def _validate(text: str, version: str) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(json.loads(text), version, strict=True)


def test_the_check_by_kubernetes_schemas_can_fail(tmp_path: Path) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="not installed")
    job = _render(tmp_path, "job", "single-80gb", 1)["job.yaml"]
    for wrong in ({**job, "spec": {**job["spec"], "backofLimit": 1}}, {**job, "spec": {}}):
        with pytest.raises(validator.ValidationError):
            _validate(json.dumps(wrong), NEWEST)


@MATRIX
def test_custom_objects_are_valid_to_their_crds(
    tmp_path: Path, kind: str, profile: str, nodes: int
) -> None:
    jobset = _spec_schema("jobset.x-k8s.io_jobsets.yaml", "v1alpha2")
    trainjob = _spec_schema("trainer.kubeflow.org_trainjobs.yaml", "v1alpha1")
    objects = _render(tmp_path, kind, profile, nodes)
    custom = [each for each in objects.values() if each["kind"] not in K8S_KINDS]
    assert bool(custom) == (kind != "job")
    for each in custom:
        if each["kind"] == "JobSet":
            _check(each["spec"], jobset)
        elif each["kind"] == "TrainJob":
            _check(each["spec"], trainjob)
        else:  # the runtime has no published schema here; what it holds is a JobSet
            assert each["kind"] == "TrainingRuntime"
            assert set(each["spec"]) == {"mlPolicy", "template"}
            _check(each["spec"]["template"]["spec"], jobset)


def test_the_check_against_a_crd_can_fail() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = _spec_schema("jobset.x-k8s.io_jobsets.yaml", "v1alpha2")
    for wrong in ({"replicatedJob": []}, {"ttlSecondsAfterFinished": "1d"}):
        with pytest.raises(jsonschema.ValidationError):
            _check(wrong, schema)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "k8s" / "queue").glob("*-*.yaml")), ids=lambda p: p.name
)
def test_the_example_queue_is_valid_to_kueue(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    group, _, version = content["apiVersion"].partition("/")
    crd = f"{group}_{content['kind'].lower()}s.yaml"
    _check(content["spec"], _spec_schema(crd, version))


def _spec_schema(name: str, version: str) -> dict[str, Any]:
    if not (CRDS / name).is_file():
        pytest.skip("the published CRDs (../shared/crds) are not here")
    return _read_schema(name, version)


@cache
def _read_schema(name: str, version: str) -> dict[str, Any]:
    crd = yaml.safe_load((CRDS / name).read_text(encoding="utf-8"))
    (served,) = [each for each in crd["spec"]["versions"] if each["name"] == version]
    assert served["served"]
    found = _strict(served["schema"]["openAPIV3Schema"]["properties"]["spec"])
    assert isinstance(found, dict)
    return found


def _strict(schema: Any) -> Any:
    """Refuse what a schema does not name, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: _strict(value) for key, value in schema.items()}
    is_object = isinstance(found.get("properties"), dict) and found.get("type") == "object"
    if is_object and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def _check(value: Any, schema: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    # Without checking the schema itself, which takes seconds.
    jsonschema.Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize("kind", KINDS)
def test_checkov_finds_nothing_that_is_not_explained(tmp_path: Path, kind: str) -> None:
    checkov = shutil.which("checkov")
    if checkov is None:
        pytest.skip("checkov is not installed")
    objects = _render(tmp_path, kind, "multi-node-h100", 2)
    # It does not look into custom objects: the Job inside is checked as one.
    job = {**_as_job(workload(objects)), "metadata": {"name": "inside", "namespace": "ml"}}
    known = [each for each in objects.values() if each["kind"] in K8S_KINDS - {"Job"}]
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump_all([*known, job]), encoding="utf-8")
    command = [checkov, "--framework", "kubernetes", "--skip-download", "-o", "json", "-f"]
    environment = {**os.environ, "BC_API_KEY": ""}
    ended = subprocess.run(
        [*command, str(path)], capture_output=True, text=True, check=False, env=environment
    )
    report = json.loads(ended.stdout)
    assert report["summary"]["passed"] > 20
    assert report["summary"]["parsing_errors"] == 0
    failed = report["results"]["failed_checks"]
    of_files_pod = {each["check_id"] for each in failed if each["resource"].startswith("Pod.ml.")}
    assert of_files_pod <= EXPLAINED | EXPLAINED_OF_FILES_POD
    found = {each["check_id"] for each in failed if not each["resource"].startswith("Pod.ml.")}
    assert found <= EXPLAINED
