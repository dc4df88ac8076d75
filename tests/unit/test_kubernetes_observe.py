"""How a run on a cluster stands, what it waits for, and what of it is said."""

from __future__ import annotations

from launcher.kubernetes.client.describe import describe
from launcher.kubernetes.client.observe import RunState, Wait, observe
from launcher.kubernetes.client.pending import why_pod_waits
from launcher.kubernetes.client.reading import find_workloads, read_all_states, read_state
from tests.kubernetes_objects import (
    JOB_UID,
    NAME,
    FakeApi,
    Object,
    event,
    last_word,
    make_job,
    make_pod,
    refusal,
    running,
    terminated,
    unscheduled,
    waiting,
)

NO_GPU = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."


def see(*objects: Object, **events: list[Object]) -> RunState:
    """Read a run as the commands do. Events: by uid, with _ for -."""
    api = FakeApi(*objects)
    api.events = {uid.replace("_", "-"): found for uid, found in events.items()}
    state = read_state(api, "Job", NAME)
    assert state is not None
    return state


def test_what_is_gone_has_no_state() -> None:
    assert read_state(FakeApi(), "Job", NAME) is None


def test_the_schedulers_words_are_shown_without_their_repetition() -> None:
    words = f"{NO_GPU} preemption: 0/2 nodes are available: 2 No preemption victims found."
    pod = make_pod(machine=None, conditions=(unscheduled(words),))
    assert describe(see(make_job(), pod)) == [f"waiting for a machine: {NO_GPU}"]


def test_a_job_that_may_make_no_pods_says_which_quota() -> None:
    words = "exceeded quota: team, requested: requests.nvidia.com/gpu=8"
    events = [
        event("FailedCreate", "an older reason", at="2026-01-01T10:00:01Z"),
        event(
            "FailedCreate",
            f'Error creating: pods "one-7fnmm" is forbidden: {words}',
            at="2026-01-01T10:00:09Z",
        ),
    ]
    state = see(make_job(), **{JOB_UID.replace("-", "_"): events})
    assert state.wait == Wait("quota", words)
    assert describe(state) == [f"waiting for quota: {words}"]


def test_an_image_backing_off_says_why_it_could_not_be_pulled() -> None:
    pod = make_pod(waiting("ImagePullBackOff", 'Back-off pulling image "trainer:1"'))
    why = event("Failed", 'Failed to pull image "trainer:1": not found')
    state = see(make_job(), pod, **{f"uid_{NAME}_0_1".replace("-", "_"): [why]})
    (node,) = state.current
    assert node.wait is not None
    assert node.wait.category == "image"
    assert "not found" in node.wait.text


def test_a_back_off_that_says_it_all_asks_for_no_events() -> None:
    words = 'Back-off pulling image "trainer:1": ErrImagePull: not found'
    api = FakeApi(make_job(), make_pod(waiting("ImagePullBackOff", words)))
    api.refused["list", "Event"] = refusal(403, "Forbidden", "no", "Event")
    state = read_state(api, "Job", NAME)
    assert state is not None
    assert describe(state) == [f"waiting for its image: ImagePullBackOff: {words}"]


def test_a_container_that_lacks_its_config_says_so() -> None:
    pod = make_pod(waiting("CreateContainerConfigError", 'configmap "x-config" not found'))
    (node,) = see(make_job(), pod).current
    assert node.wait == Wait(
        "container", 'CreateContainerConfigError: configmap "x-config" not found'
    )


def test_a_pod_being_made_waits_for_nothing_until_an_event_says_so() -> None:
    pod = make_pod(waiting("ContainerCreating"))
    assert describe(see(make_job(), pod)) == ["starting on gpu-a"]
    failed = event("FailedMount", 'MountVolume.SetUp failed for volume "runs": timed out')
    assert why_pod_waits(pod, [failed], {}) == Wait("volume", failed["message"])


def test_a_volume_that_is_not_bound_is_named_with_its_own_events() -> None:
    words = "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    pod = make_pod(machine=None, conditions=(unscheduled(words),))
    pod["spec"]["volumes"] = [
        {"name": "runs", "persistentVolumeClaim": {"claimName": "one-runs"}},
        {"name": "cache", "persistentVolumeClaim": {"claimName": "one-cache"}},
    ]
    claims = [
        {
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": f"one-{role}", "uid": f"claim-{role}"},
            "spec": {},
            "status": {"phase": phase},
        }
        for role, phase in (("runs", "Pending"), ("cache", "Bound"))
    ]
    why = event("ProvisioningFailed", 'storageclass "fast" not found')
    (node,) = see(make_job(), pod, *claims, claim_runs=[why]).current
    assert node.wait == Wait("volume", 'one-runs: not bound, storageclass "fast" not found')


def test_a_queue_says_what_it_waits_for() -> None:
    job = make_job(suspend=True, labels={"kueue.x-k8s.io/queue-name": "gpus"})
    assert describe(see(job)) == ["waiting for its queue: gpus has not admitted it yet"]
    reserved = {
        "type": "QuotaReserved",
        "status": "False",
        "message": "insufficient unused quota for nvidia.com/gpu in flavor a100, 8 more needed",
    }
    admission = {
        "kind": "Workload",
        "metadata": {"name": "job-one", "labels": {"kueue.x-k8s.io/job-uid": JOB_UID}},
        "status": {"conditions": [reserved]},
    }
    (line,) = describe(see(job, admission))
    assert line.startswith("waiting for its queue: gpus: insufficient unused quota")


def test_nodes_of_which_the_same_is_true_share_a_line() -> None:
    pods = [make_pod(running(), index=index) for index in (0, 1, 2, 4)]
    pods.append(make_pod(waiting("ContainerCreating"), index=3, machine="gpu-b"))
    assert describe(see(make_job(), *pods)) == [
        "nodes 0-2, 4: running",
        "node 3: starting",
    ]


def test_a_pod_that_stopped_on_request_is_followed_by_the_next() -> None:
    stopped = make_pod(terminated(75, last_word(75, "Interrupted", "stopped")))
    state = see(make_job(), stopped)
    assert state.current[0].phase == "stopped"
    assert describe(state) == ["stopped on request, saved; another pod goes on"]
    state = see(make_job(), stopped, make_pod(running(), attempt=2))
    assert (state.attempts, state.phase) == (2, "running")
    assert describe(state) == [
        "stopped on request, saved; another pod goes on",
        "running on gpu-a (attempt 2)",
    ]


def test_an_evicted_pod_has_no_exit_code() -> None:
    pod = make_pod(
        status={"phase": "Failed", "reason": "Evicted", "message": "low on ephemeral-storage"}
    )
    (node,) = see(make_job(), pod).current
    assert (node.phase, node.ended and node.ended.exit_code) == ("failed", None)
    assert describe(see(make_job(), pod)) == ["ended, Evicted: low on ephemeral-storage"]


def test_a_job_of_one_node_has_pods_without_an_index() -> None:
    pod = make_pod(running(), annotations={})
    assert [node.index for node in see(make_job(), pod).current] == [0]


def test_phases_of_the_run_as_a_whole() -> None:
    assert observe(make_job(), [], []).phase == "waiting"
    assert observe(make_job(suspend=True), [], []).phase == "queued"
    assert observe(make_job(), [], [make_pod(running())]).phase == "running"
    # Node 0 is what shows that training goes on.
    assert observe(make_job(), [], [make_pod(running(), index=1)]).phase == "waiting"
    leaving = make_job(deletionTimestamp="2026-01-01T10:09:00Z")
    assert observe(leaving, [], [make_pod(running())]).phase == "ending"
    assert observe(make_job(condition=("Complete", "", "")), [], []).phase == "completed"
    assert observe(make_job(condition=("Failed", "", "")), [], []).phase == "failed"
    # What only heralds the end is not the end. Source: Kubernetes 1.31, SuccessCriteriaMet.
    assert observe(make_job(condition=("FailureTarget", "", "")), [], []).phase == "waiting"


def test_a_set_fails_with_its_jobs_reason() -> None:
    condition = ("Failed", "FailedJobs", "jobset failed due to one or more job failures")
    jobset = {**make_job(condition=condition), "kind": "JobSet"}
    job = make_job(condition=("Failed", "PodFailurePolicy", "exit code 3"))
    assert observe(jobset, [job], []).verdict == ("PodFailurePolicy", "exit code 3")
    assert observe(jobset, [], []).verdict == condition[1:]


def test_a_jobset_of_a_trainjob_is_not_a_run_of_its_own() -> None:
    trainjob = {**make_job(), "kind": "TrainJob"}
    made = make_job(ownerReferences=[{"kind": "TrainJob", "controller": True}])
    jobset = {**made, "kind": "JobSet"}
    api = FakeApi(trainjob, jobset)
    assert [each["kind"] for each in find_workloads(api, NAME)] == ["TrainJob"]
    assert [state.kind for state in read_all_states(api)] == ["trainjob"]


def test_a_kind_one_may_not_see_has_no_runs() -> None:
    api = FakeApi(make_job())
    for kind in ("JobSet", "TrainJob"):
        api.refused["get", kind] = api.refused["list", kind] = refusal(403, "Forbidden", "no", kind)
    assert len(find_workloads(api, NAME)) == 1
    assert [state.name for state in read_all_states(api)] == [NAME]
