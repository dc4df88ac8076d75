"""Sending a run: what is checked before, in which order it is made, and when nothing is."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from launcher.kubernetes.client.claims import Wanted, find_claim_problem, to_bytes
from launcher.kubernetes.client.pace import Pace
from launcher.kubernetes.client.refusal import Refusal, read_answer
from launcher.kubernetes.client.removal import cancel_run
from launcher.kubernetes.client.resources import path_of
from launcher.kubernetes.client.sending import make, remove_finished, try_out
from launcher.kubernetes.client.submission import CONTENT, Submission, make_submission
from tests.kubernetes_objects import (
    NAME,
    FakeApi,
    Object,
    make_job,
    make_pod,
    refusal,
    running,
    terminated,
)
from trainer.errors import ConfigError, EnvironmentProblem

PACE = Pace(poll_seconds=0.0, patience=3)


def rendered(kind: str = "Job", *, size: str = "20Gi", config: str = "seed: 1") -> dict[str, Any]:
    """Return objects as `render` makes them, in its order."""
    mounted = [{"name": "runs", "persistentVolumeClaim": {"claimName": f"{NAME}-runs"}}]
    template = {"spec": {"containers": [], "volumes": [*mounted, {"name": "tmp"}]}}
    jobset = {"replicatedJobs": [{"template": {"spec": {"template": template}}}]}
    specs: dict[str, list[tuple[str, Any]]] = {
        "Job": [("Service", {}), ("Job", {"template": template})],
        "JobSet": [("JobSet", jobset)],
        "TrainJob": [("TrainingRuntime", {"template": {"spec": jobset}}), ("TrainJob", {})],
    }
    claim = {"resources": {"requests": {"storage": size}}, "accessModes": ["ReadWriteOnce"]}
    objects = [
        {"kind": "ConfigMap", "metadata": {"name": f"{NAME}-config"}, "data": {"run": config}},
        {"kind": "PersistentVolumeClaim", "metadata": {"name": f"{NAME}-runs"}, "spec": claim},
        {"kind": "NetworkPolicy", "metadata": {"name": NAME}, "spec": {}},
        *({"kind": each, "metadata": {"name": NAME}, "spec": spec} for each, spec in specs[kind]),
    ]
    files = {f"{number}.yaml": each for number, each in enumerate(objects)}
    return {**files, "kustomization.yaml": {"kind": "Kustomization"}}


def submission(nodes: int = 1, **options: Any) -> Submission:
    return make_submission(rendered(**options), nodes)


def claim(*modes: str, size: str = "20Gi") -> Object:
    return {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": f"{NAME}-runs"},
        "spec": {
            "accessModes": list(modes or ("ReadWriteOnce",)),
            "resources": {"requests": {"storage": size}},
        },
    }


def submit(api: FakeApi, given: Submission) -> str:
    tried = try_out(api, given)
    if tried.step != "follow":
        remove_finished(api, tried.existing, PACE, lambda _: None)
        make(api, given, tried.missing_claims, PACE)
    return tried.step


@pytest.mark.parametrize("kind", ["Job", "JobSet", "TrainJob"])
def test_everything_is_tried_before_anything_is_made_and_the_workload_last(kind: str) -> None:
    api = FakeApi()
    submit(api, submission(kind=kind))
    made = [(verb, each) for verb, each, _ in api.written]
    assert made == api.dry
    assert made[:3] == [
        ("create", "PersistentVolumeClaim"),
        ("apply", "ConfigMap"),
        ("apply", "NetworkPolicy"),
    ]
    assert made[-1] == ("create", kind)


def test_all_that_is_refused_is_told_at_once_and_nothing_is_made() -> None:
    api = FakeApi(claim(size="1Gi"))
    api.refused["apply", "Service"] = refusal(
        403,
        "Forbidden",
        'User "me" cannot patch resource "services" in API group "" in the namespace "team"',
        "Service",
    )
    api.refused["create", "Job"] = refusal(
        422,
        "Invalid",
        "Job is invalid",
        details={"causes": [{"field": "spec.completions", "message": "must be positive"}]},
    )
    with pytest.raises(EnvironmentProblem) as caught:
        try_out(api, submission())
    text = str(caught.value)
    assert "3 problems" in text
    assert "has 1Gi, the plan needs 20Gi" in text
    assert "you may not patch services in namespace team" in text
    assert "spec.completions: must be positive" in text
    assert caught.value.exit_code == 3
    assert api.written == []


def test_a_missing_namespace_is_told_once() -> None:
    api = FakeApi()
    namespace = {"kind": "namespaces", "name": "team"}
    for verb, kind in (("apply", "ConfigMap"), ("create", "Job")):
        api.refused[verb, kind] = refusal(404, "NotFound", "not found", kind, namespace)
    with pytest.raises(EnvironmentProblem, match=r"1 problem\n") as caught:
        try_out(api, submission())
    assert "kubectl create namespace team" in str(caught.value)


def test_a_volume_that_is_there_is_kept() -> None:
    api = FakeApi(claim(size="500Gi"))
    submit(api, submission())
    assert "PersistentVolumeClaim" not in [kind for _, kind, _ in api.written]


def test_the_same_again_follows_and_something_else_is_refused() -> None:
    api = FakeApi()
    assert submit(api, submission()) == "create"
    api.written.clear()
    assert submit(api, submission()) == "follow"
    assert submit(api, submission(size="30Gi")) == "follow"  # a volume is never changed
    with pytest.raises(ConfigError, match="differs") as caught:
        try_out(api, submission(config="seed: 2"))
    assert f"rankzero cancel {NAME}" in caught.value.fix
    with pytest.raises(ConfigError, match=r"Job .* is at work"):
        try_out(api, submission(kind="JobSet"))
    assert api.written == []


def test_a_job_that_kubectl_made_is_not_taken_for_the_same() -> None:
    with pytest.raises(ConfigError, match="another command"):
        try_out(FakeApi(make_job()), submission())


@pytest.mark.parametrize("condition", ["Complete", "Failed"])
def test_a_run_that_is_over_is_replaced(condition: str) -> None:
    old = make_job(condition=(condition, "", ""))
    api = FakeApi(old, claim())
    api.refused["create", "Job"] = refusal(409, "AlreadyExists", "exists")
    given = submission()
    tried = try_out(api, given)
    del api.refused["create", "Job"]
    remove_finished(api, tried.existing, PACE, lambda _: None)
    make(api, given, tried.missing_claims, PACE)
    assert api.written[0] == ("delete", "Job", NAME)
    assert api.objects["Job", NAME]["metadata"]["annotations"][CONTENT] == given.content


def test_a_job_whose_pods_still_save_is_waited_for() -> None:
    api = FakeApi(make_job(), make_pod(running(), deletionTimestamp="now"))
    looks = iter(range(PACE.patience * 3))

    def get(kind: str, name: str) -> Object | None:
        return make_job() if next(looks, None) is not None else None

    api.get = get  # type: ignore[method-assign]
    remove_finished(api, [make_job()], PACE, lambda _: None)
    assert next(looks, None) is None


def test_a_job_that_does_not_go_away_is_named() -> None:
    api = FakeApi()
    api.get = lambda kind, name: make_job()  # type: ignore[method-assign]
    with pytest.raises(EnvironmentProblem, match="does not go away"):
        remove_finished(api, [make_job()], PACE, lambda _: None)


def test_a_trainjob_is_tried_before_its_runtime_is_there() -> None:
    api = FakeApi()
    words = "specified trainingRuntime must be created before the TrainJob is created"
    api.refused["create", "TrainJob"] = refusal(403, "Forbidden", words, "TrainJob")
    given = submission(kind="TrainJob")
    tried = try_out(api, given)
    assert tried.step == "create"
    with pytest.raises(Refusal):  # it never is
        make(api, given, tried.missing_claims, PACE)
    tries = iter([api.refused.pop(("create", "TrainJob"))])
    check = api._check

    def check_later(verb: str, kind: str) -> None:
        check(verb, kind)
        if (verb, kind) == ("create", "TrainJob") and (first := next(tries, None)):
            raise first

    api._check = check_later  # type: ignore[method-assign]
    make(api, given, tried.missing_claims, PACE)
    assert api.written[-1][1] == "TrainJob"


def test_a_webhook_that_cannot_be_tried_hinders_nothing() -> None:
    api = FakeApi()
    words = 'admission webhook "audit.team" does not support dry run'
    api.refused["create", "Job"] = refusal(400, "BadRequest", words)
    assert try_out(api, submission()).step == "create"


@pytest.mark.parametrize(
    ("nodes", "role", "modes", "is_fine"),
    [
        (1, "runs", ("ReadWriteOnce",), True),
        (2, "runs", ("ReadWriteOnce",), False),
        (2, "runs", ("ReadOnlyMany",), False),
        (2, "runs", ("ReadWriteOnce", "ReadWriteMany"), True),
        (2, "models", ("ReadOnlyMany",), True),
    ],
)
def test_several_nodes_need_a_volume_they_can_share(
    nodes: int, role: str, modes: tuple[str, ...], is_fine: bool
) -> None:
    problem = find_claim_problem(Wanted(role, "shared", nodes, None), claim(*modes))
    assert (problem is None) == is_fine
    if problem:
        assert f"--claim {role}=NAME" in problem


def test_a_named_volume_must_be_there() -> None:
    assert "no such volume claim" in str(find_claim_problem(Wanted("runs", "x", 1, None), None))
    assert find_claim_problem(Wanted("runs", "x", 1, "1Gi"), None) is None


def test_the_size_of_a_bound_volume_is_what_it_has() -> None:
    bound = {**claim(size="10Gi"), "status": {"capacity": {"storage": "1Ti"}}}
    assert find_claim_problem(Wanted("runs", "x", 1, "900Gi"), bound) is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("10Gi", 10 * 2**30), ("1.5Ti", 1.5 * 2**40), ("5G", 5e9), ("1000", 1000), ("2e3", 2000)],
)
def test_quantities(text: str, size: float) -> None:
    assert to_bytes(text) == size


@pytest.mark.parametrize(
    ("code", "status", "kind", "told"),
    [
        (404, "404 page not found", "JobSet", "this cluster knows no JobSet"),
        (
            403,
            'jobs.batch "x" is forbidden: exceeded quota: team, requested: count/jobs.batch=1',
            "Job",
            "kubectl describe quota,limits --namespace team",
        ),
        (
            400,
            'strict decoding error: unknown field "spec.podReplacementPolicy"',
            "Job",
            "a Job needs Kubernetes 1.29",
        ),
        (
            403,
            'User "me" cannot create resource "jobsets" in API group "jobset.x-k8s.io" in the '
            'namespace "team"',
            "JobSet",
            "kubectl auth can-i create jobsets.jobset.x-k8s.io --namespace team",
        ),
    ],
)
def test_a_refusal_says_what_to_do(code: int, status: str, kind: str, told: str) -> None:
    body = status
    if code != 404:
        values = {"kind": "Status", "message": status, "reason": "Forbidden", "code": code}
        body = json.dumps(values)
    assert told in Refusal(read_answer(code, body), kind, "x", "team").to_problem()


def test_paths() -> None:
    assert path_of("Pod", "team", "x", "log") == "/api/v1/namespaces/team/pods/x/log"
    assert path_of("Job", "team") == "/apis/batch/v1/namespaces/team/jobs"


def submitted() -> FakeApi:
    """Return a cluster with a run on it, whose objects have their labels."""
    api = FakeApi()
    submit(api, submission())
    own = make_job()["metadata"]["labels"]
    for each in api.objects.values():
        each["metadata"]["labels"] = own
    api.put(copy.deepcopy(make_pod(running())))
    api.written.clear()
    return api


def test_cancel_waits_for_the_pods_before_it_takes_the_rest_and_keeps_volumes() -> None:
    api, said = submitted(), []
    looks = iter(
        [
            make_pod(running(), deletionTimestamp="now", deletionGracePeriodSeconds=240),
            make_pod(terminated(75)),
            None,
        ]
    )

    def live() -> None:
        if api.written and (pod := next(looks, None)) is not None:
            api.put(pod)
        elif api.written:
            api.remove("Pod", f"{NAME}-0-1")

    listed = api.list

    def list_later(kind: str, **options: Any) -> list[Object]:
        if kind == "Pod":
            live()
            assert ("delete", "ConfigMap", f"{NAME}-config") not in api.written
        return listed(kind, **options)

    api.list = list_later  # type: ignore[method-assign, assignment]
    assert cancel_run(api, NAME, PACE, said.append) == [f"{NAME}-runs"]
    assert [(kind, name) for _, kind, name in api.written] == [
        ("Job", NAME),
        ("Service", NAME),
        ("NetworkPolicy", NAME),
        ("ConfigMap", f"{NAME}-config"),
    ]
    assert any("at most 240 s" in line for line in said)
    assert any("exit 75, saved" in line for line in said)
    assert ("PersistentVolumeClaim", f"{NAME}-runs") in api.objects


def test_cancel_finishes_what_an_earlier_one_began() -> None:
    api = submitted()
    api.remove("Pod", f"{NAME}-0-1")
    api.remove("Job", NAME)
    cancel_run(api, NAME, PACE, lambda _: None)
    assert [kind for _, kind, _ in api.written] == ["Service", "NetworkPolicy", "ConfigMap"]
    with pytest.raises(ConfigError, match=f"no run {NAME}"):
        cancel_run(api, NAME, PACE, lambda _: None)
