"""A rendered run as it is sent: what carries it out, what that needs, if it is new. PURE."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launcher.kubernetes.client.claims import Wanted, wanted_claims
from launcher.kubernetes.client.observe import is_finished
from launcher.kubernetes.client.resources import WORKLOAD_KINDS, Object, is_being_deleted, name_of
from launcher.kubernetes.manifests.render import FILES_POD, KUSTOMIZATION
from trainer.errors import ConfigError

CONTENT = "rankzero/content"
"""Annotation: a hash of all that was submitted; the API server keeps it with defaults added."""
Step = Literal["create", "follow", "replace"]


@dataclass(frozen=True)
class Submission:
    """One run to be sent to a cluster."""

    name: str
    workload: Object
    """The Job, JobSet or TrainJob."""
    claims: tuple[Object, ...]
    """Volumes to be made where there are none yet."""
    others: tuple[Object, ...]
    """What is applied before the workload."""
    volumes: tuple[Wanted, ...]
    """Every volume that pods mount."""

    @property
    def kind(self) -> str:
        return str(self.workload["kind"])

    @property
    def content(self) -> str:
        return str(self.workload["metadata"]["annotations"][CONTENT])


def make_submission(manifests: Mapping[str, Object], nodes: int) -> Submission:
    """Sort what was rendered, and mark the workload with a hash of it all."""
    by_hand = (KUSTOMIZATION, FILES_POD)
    objects = {name: each for name, each in manifests.items() if name not in by_hand}
    (workload,) = [each for each in objects.values() if each["kind"] in WORKLOAD_KINDS.values()]
    claims = [each for each in objects.values() if each["kind"] == "PersistentVolumeClaim"]
    others = [each for each in objects.values() if each is not workload and each not in claims]
    marked = copy.deepcopy(workload)
    # Not of the volumes: they are kept, whatever size the plan has come to meanwhile.
    text = json.dumps([*others, workload], sort_keys=True)
    content = hashlib.sha256(text.encode()).hexdigest()[:16]
    marked["metadata"].setdefault("annotations", {})[CONTENT] = content
    wanted = wanted_claims(objects, pod_template_of(objects.values()), nodes)
    return Submission(name_of(workload), marked, tuple(claims), tuple(others), tuple(wanted))


def pod_template_of(objects: Any) -> Object:
    """Return the template of a rendered run's pods, whatever carries it out."""
    by_kind = {each["kind"]: each.get("spec") for each in objects}
    if "Job" in by_kind:
        return dict(by_kind["Job"]["template"])
    jobset = (
        by_kind["JobSet"] if "JobSet" in by_kind else by_kind["TrainingRuntime"]["template"]["spec"]
    )
    return dict(jobset["replicatedJobs"][0]["template"]["spec"]["template"])


def decide(submission: Submission, existing: Sequence[Object]) -> Step:
    """Return what to do about workloads that have the run's name already.

    Raises: ConfigError when one is at work on something else.
    """
    at_work = [each for each in existing if not is_finished(each) and not is_being_deleted(each)]
    for each in at_work:
        kind = each["kind"]
        mark = (each["metadata"].get("annotations") or {}).get(CONTENT)
        if mark == submission.content:
            continue
        differs = "was made by another command than submit" if mark is None else "differs from this"
        raise ConfigError(
            f"{kind} {submission.name} is at work, and {differs}",
            rule="a run's config, plan and image are those it was started with",
            fix=f"rankzero cancel {submission.name}, then submit again: it goes on from its newest "
            "checkpoint; or give this run another output_dir",
        )
    if at_work:
        return "follow"
    return "replace" if existing else "create"
