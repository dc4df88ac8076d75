"""Every object of a run, by the name of its file. PURE."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from launcher.kubernetes.cluster import CONFIG_FILE, CONFIG_FOLDER, Cluster, Role
from launcher.kubernetes.manifests.files_pod import make_files_pod
from launcher.kubernetes.manifests.job import make_job
from launcher.kubernetes.manifests.jobset import make_jobset
from launcher.kubernetes.manifests.needs import claim_sizes, pod_needs
from launcher.kubernetes.manifests.network import make_network_policy, make_service
from launcher.kubernetes.manifests.pod import Work
from launcher.kubernetes.manifests.run_config import LocalFiles, to_cluster_config
from launcher.kubernetes.manifests.trainjob import make_training_runtime, make_trainjob
from launcher.kubernetes.manifests.volumes import Claim, claim_objects
from launcher.kubernetes.names import labels, run_name
from launcher.planning import PlannedRun
from trainer.config import Config
from trainer.errors import ConfigError

KUSTOMIZATION = "kustomization.yaml"
FILES_POD = "files-pod.yaml"
"""Not in the kustomization: it is started by hand, to copy files."""
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# Kueue's webhooks act on what makes the pods, and on nothing else of a run.
_QUEUED_KINDS = ("Job", "JobSet", "TrainJob")


def render_manifests(
    planned: PlannedRun, config: Config, local: LocalFiles, cluster: Cluster
) -> dict[str, dict[str, Any]]:
    """Return the run's objects by file name, a kustomization of them, and a pod to copy files.

    `config` is the run's own, before the plan's choices: the pods plan again, for the same
    profile, so that a run can go on elsewhere.

    Raises: ConfigError, EnvironmentProblem when this plan cannot run in pods.
    """
    plan, name = planned.plan, run_name(config.output_dir)
    if plan.device == "mps":
        raise ConfigError(
            f"profile {plan.profile} is a Mac",
            rule="pods run on Linux, with NVIDIA GPUs or none",
            fix="name a profile of the cluster's machines; rankzero profiles lists them",
        )
    claims = _claims(name, local, cluster)
    work = Work(
        name=name,
        plan=plan,
        profile=planned.profile,
        profile_argument=_profile_argument(plan.profile, local),
        needs=pod_needs(
            plan, planned.profile, data_workers=planned.config.training.dataloader_workers
        ),
        claims=claims,
        cluster=cluster,
    )
    sizes = claim_sizes(
        plan,
        total_parameters=planned.request.facts.total_parameters,
        is_model_downloaded=not local.is_model_local,
        data_bytes=local.data_bytes,
    )
    new = [claim for claim in claims if claim.role not in cluster.claims]
    objects = {"configmap.yaml": _config_map(name, config, local)}
    for role, claim in claim_objects(name, new, sizes, plan.nodes).items():
        objects[f"volume-{role}.yaml"] = claim
    objects["network-policy.yaml"] = make_network_policy(
        name, nodes=plan.nodes, internet=cluster.internet
    )
    objects |= _workload(work)
    kustomization = _kustomization(objects)
    objects[FILES_POD] = make_files_pod(work)
    return {**_completed(objects, cluster), KUSTOMIZATION: kustomization}


def to_yaml(value: Mapping[str, Any]) -> str:
    """Write one object as YAML; the same object gives the same text."""
    return yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Without anchors, and with texts of several lines as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# Read as numbers or booleans by other YAML parsers than PyYAML: Go's, and our own for configs. A
# commit such as 12e5678 is one.
_AMBIGUOUS = re.compile(r"[-+]?\.?\d[\d_.eExXoOa-fA-F+-]*|[yYnN]")


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else "'" if _AMBIGUOUS.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _workload(work: Work) -> dict[str, dict[str, Any]]:
    if work.cluster.kind == "jobset":
        return {"jobset.yaml": make_jobset(work)}
    if work.cluster.kind == "trainjob":
        return {
            "training-runtime.yaml": make_training_runtime(work),
            "trainjob.yaml": make_trainjob(work),
        }
    service = {"service.yaml": make_service(work.name)} if work.is_multi_node else {}
    return {**service, "job.yaml": make_job(work)}


def _claims(name: str, local: LocalFiles, cluster: Cluster) -> list[Claim]:
    """Return the volumes a run uses: one for models or data only if it reads any from there."""
    used: list[Role] = ["runs", "cache"]
    used += ["models"] if local.is_model_local else []
    used += ["data"] if local.data else []
    unused = [role for role in cluster.claims if role not in used]
    if unused:
        raise ConfigError(
            f"--claim {unused[0]}={cluster.claims[unused[0]]}: this run reads no {unused[0]} there",
            rule="only folders and files of the config lie on a volume, not what the Hub has",
            fix="drop the option, or name a folder",
        )
    return [Claim(role, cluster.claims.get(role, f"{name}-{role}")) for role in used]


def _profile_argument(profile: str, local: LocalFiles) -> str:
    file = local.names.get("profile")
    return profile if file is None else f"{CONFIG_FOLDER}/{file}"


def _config_map(name: str, config: Config, local: LocalFiles) -> dict[str, Any]:
    found = to_cluster_config(config, local)
    text = to_yaml(found.values)
    found.check_size(text)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-config", "labels": labels(name)},
        "data": {CONFIG_FILE: text, **dict(sorted(found.files.items()))},
    }


def _completed(objects: dict[str, dict[str, Any]], cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Add what holds for all: namespace and queue."""
    for each in objects.values():
        metadata = each["metadata"]
        if cluster.namespace is not None:
            metadata["namespace"] = cluster.namespace
        if cluster.queue is not None and each["kind"] in _QUEUED_KINDS:
            metadata["labels"] = {**metadata["labels"], _QUEUE_LABEL: cluster.queue}
    return objects


def _kustomization(objects: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(objects),
    }
