"""`rankzero render`: manifests that say what the plan says, for every kind of job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from launcher import planning
from launcher.commands.render import render
from launcher.commands.train import train
from launcher.fit import PLACE_NAMES
from launcher.kubernetes.cluster import MOUNTS
from launcher.kubernetes.manifests.failure_policy import ACTIONS
from launcher.kubernetes.names import LONGEST_LABEL
from launcher.planning import Target, plan_run
from launcher.profile_file import load_profile
from launcher.run_plan import RunPlan
from launcher.supervise import ENGINE_SECONDS, KILL_GRACE_SECONDS
from trainer.config import Config, load_config
from trainer.errors import ConfigError, EnvironmentProblem, RankZeroError
from trainer.model_facts import ModelFacts

ROOT = Path(__file__).parents[2]
KINDS = ("job", "jobset", "trainjob")
Objects = dict[str, dict[str, Any]]


@pytest.fixture(autouse=True)
def known_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let facts be those recorded for the model that the config's path or name ends in."""
    monkeypatch.setattr(planning, "find_facts", recorded_facts)


def recorded_facts(config: Config, training: Any, *_: Any) -> ModelFacts:
    method = "lora" if config.lora.enabled else "full"
    method = "qlora" if training.quantization == "nf4" else method
    path = ROOT / "tests" / "model_facts" / f"{Path(config.model.name).name}.{method}.json"
    return ModelFacts.model_validate_json(path.read_bytes())


def write_config(folder: Path, *, model: str = "llama-3.2-1b", **sections: Any) -> Path:
    values = {
        "model": {"name": f"/weights/{model}"},
        "data": {"train": str(folder / "rows.jsonl"), "max_length": 2048},
        "output_dir": "runs/one",
        **sections,
    }
    (folder / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    path = folder / "run.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def render_run(config: Path, output: Path, *arguments: str) -> Objects:
    """Run the command and return the objects it wrote, by file name."""
    given = [str(config), *arguments, "--output", str(output)]
    ended = CliRunner().invoke(render, given, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return {
        path.name: yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in sorted(output.iterdir())
    }


def workload(objects: Objects) -> dict[str, Any]:
    """Return the Job of a run, alone or inside a JobSet or runtime: its spec."""
    if "job.yaml" in objects:
        found: dict[str, Any] = objects["job.yaml"]["spec"]
        return found
    if "jobset.yaml" in objects:
        jobs = objects["jobset.yaml"]["spec"]["replicatedJobs"]
    else:
        jobs = objects["training-runtime.yaml"]["spec"]["template"]["spec"]["replicatedJobs"]
    assert len(jobs) == 1
    inside: dict[str, Any] = jobs[0]["template"]["spec"]
    return inside


def pod_of(objects: Objects) -> dict[str, Any]:
    found: dict[str, Any] = workload(objects)["template"]["spec"]
    return found


def container_of(objects: Objects) -> dict[str, Any]:
    (container,) = pod_of(objects)["containers"]
    assert isinstance(container, dict)
    return container


def in_gib(quantity: str) -> float:
    number, unit = quantity[:-2], quantity[-2:]
    return float(number) * {"Gi": 1.0, "Mi": 1 / 1024}[unit]


def predicted(plan: RunPlan, place: Any) -> float:
    return sum(use.gib for use in plan.usage if use.place == PLACE_NAMES[place])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("profile", "nodes", "model"),
    [
        ("single-24gb", 1, "llama-3.1-8b"),
        ("cpu", 1, "llama-3.2-1b"),
        ("multi-a100-40gb", 1, "llama-3.1-70b"),
        ("multi-node-h100", 4, "llama-3.1-70b"),
    ],
)
def test_the_numbers_are_the_plans(
    tmp_path: Path, kind: str, profile: str, nodes: int, model: str
) -> None:
    merge = {"after_training": True}
    config = write_config(tmp_path, model=model, merge=merge)
    target = ("--profile", profile, "--nodes", str(nodes))
    objects = render_run(config, tmp_path / "out", *target, "--kind", kind)
    plan = plan_run(config, [], Target(profile=profile, nodes=nodes)).plan
    machine = load_profile(profile)
    asked = container_of(objects)["resources"]
    assert asked["requests"] == asked["limits"]

    gpus = plan.processes_per_node if plan.device == "cuda" else 0
    assert int(asked["limits"].get("nvidia.com/gpu", 0)) == gpus

    volumes = {each["name"]: each for each in pod_of(objects)["volumes"]}
    shared = in_gib(volumes["shared-memory"]["emptyDir"]["sizeLimit"])
    assert shared >= plan.processes_per_node
    used = predicted(plan, "host")
    if plan.device == "cpu":
        used += predicted(plan, "device") * plan.processes_per_node
    assert used < in_gib(asked["limits"]["memory"]) <= machine.host.memory_gib
    assert 1 <= int(asked["limits"]["cpu"]) < machine.host.cpu_cores

    local = [each["emptyDir"] for each in volumes.values() if "emptyDir" in each]
    on_disk = sum(in_gib(each["sizeLimit"]) for each in local if each.get("medium") is None)
    assert in_gib(asked["limits"]["ephemeral-storage"]) > on_disk

    grace = pod_of(objects)["terminationGracePeriodSeconds"]
    assert grace > plan.shutdown_timeout_seconds + KILL_GRACE_SECONDS + ENGINE_SECONDS

    job = workload(objects)
    assert job["completions"] == job["parallelism"] == plan.nodes == nodes
    runs = objects["volume-runs.yaml"]["spec"]["resources"]["requests"]["storage"]
    assert in_gib(runs) > predicted(plan, "disk")
    weights = plan_facts(config, profile).total_parameters * 2 / 2**30
    models = objects["volume-models.yaml"]["spec"]["resources"]["requests"]["storage"]
    assert in_gib(models) > weights


def plan_facts(config: Path, profile: str) -> ModelFacts:
    return plan_run(config, [], Target(profile=profile)).request.facts


def test_memory_is_exactly_what_the_rule_says(tmp_path: Path) -> None:
    offload = {"deepspeed_config": "zero3_offload"}
    config = write_config(tmp_path, model="llama-3.1-70b", training=offload)
    plan = plan_run(config, [], Target(profile="multi-a100-80gb")).plan
    pinned = sum(term.gib for term in plan.terms if term.place == "pinned")
    assert pinned > 100  # offloaded weights
    objects = render_run(config, tmp_path / "out", "--profile", "multi-a100-80gb")
    memory = in_gib(container_of(objects)["resources"]["limits"]["memory"])
    host, shared = predicted(plan, "host"), 8  # 1 GiB for each of 8 processes
    assert host > pinned
    assert memory - 1 < 1.1 * (host + shared) <= memory


def test_nvme_offload_gets_a_volume_of_the_plans_size(tmp_path: Path) -> None:
    config = write_config(
        tmp_path, model="llama-3.1-8b", training={"deepspeed_config": "zero3_nvme"}
    )
    plan = plan_run(config, [], Target(profile="multi-h100")).plan
    objects = render_run(config, tmp_path / "out", "--profile", "multi-h100")
    (size,) = [
        in_gib(each["emptyDir"]["sizeLimit"])
        for each in pod_of(objects)["volumes"]
        if each["name"] == "nvme"
    ]
    nvme = load_profile("multi-h100").nvme
    assert nvme is not None
    assert 0 < predicted(plan, "nvme") <= size < predicted(plan, "nvme") + 1
    mounts = {each["name"]: each["mountPath"] for each in container_of(objects)["volumeMounts"]}
    assert mounts["nvme"] == nvme.path


def test_a_node_without_the_memory_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, training={"dataloader_workers": 60})
    with pytest.raises(EnvironmentProblem, match=r"30 of it for data workers") as caught:
        render_run(config, tmp_path / "out", "--profile", "single-24gb")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "host"),
    [
        ("job", "rankzero-one-0.rankzero-one"),
        ("jobset", "rankzero-one-node-0-0.rankzero-one"),
        ("trainjob", "rankzero-one-node-0-0.rankzero-one"),
    ],
)
def test_the_arguments_are_a_command_that_train_accepts(
    tmp_path: Path, kind: str, host: str
) -> None:
    config = write_config(tmp_path)
    target = ("--profile", "multi-a100-80gb", "--nodes", "2")
    objects = render_run(config, tmp_path / "out", *target, "--kind", kind)
    container = container_of(objects)
    environment = {each["name"]: each for each in container["env"]}
    index = environment["JOB_COMPLETION_INDEX"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    arguments = [word.replace("$(JOB_COMPLETION_INDEX)", "1") for word in container["args"]]
    assert arguments[0] == "train"
    assert not any("$(" in word for word in arguments)
    read = train.make_context("train", arguments[1:]).params
    assert read["config"] == Path("/etc/rankzero/run.yaml")
    assert read["profile"] == "multi-a100-80gb"
    assert (read["nodes"], read["node_rank"]) == (2, 1)
    assert read["rendezvous"] == f"{host}:29400"
    assert container["ports"] == [{"name": "rendezvous", "containerPort": 29400}]
    if kind == "job":
        service = objects["service.yaml"]["spec"]
        assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
        pod = workload(objects)["template"]
        assert service["selector"].items() <= pod["metadata"]["labels"].items()
        assert pod["spec"]["subdomain"] == objects["service.yaml"]["metadata"]["name"]
    else:
        assert "service.yaml" not in objects  # the set makes it


def test_one_node_needs_no_service_and_no_rank(tmp_path: Path) -> None:
    objects = render_run(write_config(tmp_path), tmp_path / "out", "--profile", "single-80gb")
    assert "service.yaml" not in objects
    container = container_of(objects)
    assert container["args"][-2:] == ["--nodes", "1"]
    assert "JOB_COMPLETION_INDEX" not in {each["name"] for each in container["env"]}
    assert objects["job.yaml"]["spec"]["completionMode"] == "NonIndexed"


def _every_error(base: type[RankZeroError] = RankZeroError) -> Iterator[type[RankZeroError]]:
    yield base
    for error in base.__subclasses__():
        if error.__module__ == RankZeroError.__module__:
            yield from _every_error(error)


@pytest.mark.parametrize("kind", KINDS)
def test_every_exit_code_has_its_consequence(tmp_path: Path, kind: str) -> None:
    target = ("--profile", "multi-a100-80gb", "--nodes", "2", "--kind", kind)
    job = workload(render_run(write_config(tmp_path), tmp_path / "out", *target))
    disrupted, *rules = job["podFailurePolicy"]["rules"]
    assert disrupted["action"] == "Ignore"
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    actions = {
        code: rule["action"]
        for rule in rules
        for code in rule["onExitCodes"]["values"]
        if rule["onExitCodes"]["operator"] == "In"
    }
    assert actions == {
        75: "Ignore",
        2: "FailJob",
        3: "FailJob",
        5: "FailJob",
        4: "Count",
        1: "Count",
    }
    assert set(actions) == {error.exit_code for error in _every_error()}
    assert {error.exit_code for error in ACTIONS} == set(actions)
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    names = {rule["onExitCodes"]["containerName"] for rule in rules}
    assert names == {each["name"] for each in pod["containers"]}
    assert job["podReplacementPolicy"] == "Failed"
    assert job["backoffLimit"] == 3 * 2


@pytest.mark.parametrize("kind", KINDS)
def test_pods_may_do_nothing_they_need_not(tmp_path: Path, kind: str) -> None:
    target = ("--profile", "multi-a100-80gb", "--nodes", "2", "--kind", kind)
    objects = render_run(write_config(tmp_path), tmp_path / "out", *target)
    pod, container = pod_of(objects), container_of(objects)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    kinds = {kind for each in pod["volumes"] for kind in each if kind != "name"}
    assert kinds == {"configMap", "emptyDir", "persistentVolumeClaim"}
    assert container["terminationMessagePath"] == "/dev/termination-log"
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    assert set(mounts) == {each["name"] for each in pod["volumes"]}
    read_only = {name for name, each in mounts.items() if each.get("readOnly")}
    assert read_only == {"config", "models", "data"}
    assert "envFrom" not in container


def test_whatever_is_written_lies_on_a_volume(tmp_path: Path) -> None:
    objects = render_run(write_config(tmp_path), tmp_path / "out", "--profile", "single-80gb")
    container = container_of(objects)
    writable = [each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")]
    environment = {each["name"]: each.get("value", "") for each in container["env"]}
    folders = {name: value for name, value in environment.items() if value.startswith("/")}
    assert {"HOME", "TMPDIR", "HF_HOME", "RANKZERO_CACHE", "TRITON_CACHE_DIR"} <= set(folders)
    assert {"TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "MPLCONFIGDIR"} <= set(folders)
    for name, folder in folders.items():
        assert any(Path(folder).is_relative_to(place) for place in writable), name
    # A variable of the image that names a folder must not lead elsewhere.
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for line in image.partition("\nENV HOME=")[2].partition("VOLUME")[0].splitlines():
        name, _, value = line.strip(" \\").partition("=")
        if value.startswith("/"):
            assert name in folders
    run = yaml.safe_load(objects["configmap.yaml"]["data"]["run.yaml"])
    assert Path(run["output_dir"]).is_relative_to(MOUNTS["runs"])
    assert MOUNTS["runs"] in writable


def test_ranks_talk_to_each_other_and_to_nobody_else(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    two = ("--profile", "multi-a100-80gb", "--nodes", "2")
    objects = render_run(config, tmp_path / "two", *two)
    policy = objects["network-policy.yaml"]["spec"]
    mine = {"podSelector": policy["podSelector"]}
    pod = workload(objects)["template"]["metadata"]["labels"]
    assert mine["podSelector"]["matchLabels"].items() <= pod.items()
    assert mine["podSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "rankzero-one"
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [{"from": [mine]}]
    ranks, dns = policy["egress"]
    assert ranks == {"to": [mine]}
    assert {each["port"] for each in dns["ports"]} == {53}
    environment = {each["name"]: each.get("value") for each in container_of(objects)["env"]}
    assert environment["HF_HUB_OFFLINE"] == "1"

    alone = render_run(config, tmp_path / "one", "--profile", "single-80gb")
    policy = alone["network-policy.yaml"]["spec"]
    assert policy["ingress"] == []
    assert policy["egress"] == [dns]


def test_the_internet_is_an_option(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    objects = render_run(config, tmp_path / "out", "--profile", "single-80gb", "--internet")
    _, outside = objects["network-policy.yaml"]["spec"]["egress"]
    assert outside["ports"] == [{"protocol": "TCP", "port": 443}]
    # Clouds hand out a machine's credentials at link-local addresses.
    assert outside["to"][0]["ipBlock"] == {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}
    container = container_of(objects)
    assert container["envFrom"] == [{"secretRef": {"name": "rankzero-tokens", "optional": True}}]
    assert "HF_HUB_OFFLINE" not in {each["name"] for each in container["env"]}


def test_a_hub_model_is_cached_and_said_to_need_the_internet(tmp_path: Path) -> None:
    config = write_config(tmp_path, model="llama-3.1-8b")
    hub = ["--set", "model.name=meta/llama-3.1-8b", "--profile", "single-80gb"]
    output = ["--output", str(tmp_path / "out")]
    ended = CliRunner().invoke(render, [str(config), *hub, *output], catch_exceptions=False)
    assert "note: model meta/llama-3.1-8b is the Hub's" in ended.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "volume-models.yaml" not in names
    cache = yaml.safe_load((tmp_path / "out" / "volume-cache.yaml").read_text())
    assert in_gib(cache["spec"]["resources"]["requests"]["storage"]) > 16
    more = CliRunner().invoke(render, [str(config), *hub, *output, "--internet"])
    assert more.stderr == ""


def test_pods_go_where_the_hardware_is(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    two = ("--profile", "multi-a100-80gb", "--nodes", "2")
    pod = pod_of(render_run(config, tmp_path / "gpu", *two))
    assert pod["nodeSelector"]["nvidia.com/gpu.present"] == "true"
    assert [each["key"] for each in pod["tolerations"]] == ["nvidia.com/gpu"]
    required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = required["nodeSelectorTerms"]
    least = {each["key"]: int(each["values"][0]) for each in term["matchExpressions"]}
    # What the feature discovery says of such a node: "greater than" must hold.
    labels = {"memory": 81_920, "count": 8, "compute.major": 8}
    assert set(least) == {f"nvidia.com/gpu.{name}" for name in labels}
    assert all(value > least[f"nvidia.com/gpu.{name}"] for name, value in labels.items())
    # And not of a 40 GB card, of 7 GPUs, of the generation before.
    smaller = {"memory": 40_960, "count": 7, "compute.major": 7}
    assert not any(value > least[f"nvidia.com/gpu.{name}"] for name, value in smaller.items())
    apart = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert [each["topologyKey"] for each in apart] == ["kubernetes.io/hostname"]

    alone = pod_of(render_run(config, tmp_path / "cpu", "--profile", "cpu"))
    assert alone["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert not {"affinity", "tolerations"} & set(alone)


def test_nccl_is_told_what_the_profile_knows(tmp_path: Path) -> None:
    config = write_config(tmp_path)

    def nccl(profile: str, nodes: int) -> dict[str, str]:
        target = ("--profile", profile, "--nodes", str(nodes))
        objects = render_run(config, tmp_path / f"{profile}-{nodes}", *target)
        env = container_of(objects)["env"]
        return {e["name"]: e["value"] for e in env if e["name"].startswith("NCCL")}

    assert nccl("single-80gb", 1) == nccl("cpu", 2) == {}
    assert nccl("multi-a100-40gb", 2) == {"NCCL_DEBUG": "WARN"}  # 50 Gbit/s
    assert nccl("multi-a100-80gb", 1) == {"NCCL_DEBUG": "WARN"}
    assert nccl("multi-a100-80gb", 2)["NCCL_NSOCKS_PERTHREAD"] == "4"  # 400 Gbit/s


@pytest.mark.parametrize("kind", KINDS)
def test_a_queue_is_named_once_where_kueue_looks(tmp_path: Path, kind: str) -> None:
    config = write_config(tmp_path)
    more = ("--profile", "single-80gb", "--kind", kind)
    queued = render_run(config, tmp_path / "a", *more, "--queue", "team-a", "--namespace", "ml")
    label = "kueue.x-k8s.io/queue-name"
    found = {
        each["kind"]: each["metadata"]["labels"].get(label)
        for each in queued.values()
        if "metadata" in each
    }
    assert [name for name, queue in found.items() if queue == "team-a"] == [
        {"job": "Job", "jobset": "JobSet", "trainjob": "TrainJob"}[kind]
    ]
    spaces = {each["metadata"]["namespace"] for each in queued.values() if "metadata" in each}
    assert spaces == {"ml"}
    plain = render_run(config, tmp_path / "b", *more)
    assert not any("namespace" in each.get("metadata", {}) for each in plain.values())
    # Written out, `suspend` would stop a run that Kueue has admitted when it is applied again.
    top = next(each for each in queued.values() if each["kind"] in found and "spec" in each)
    assert "suspend" not in top["spec"]


def test_the_trainjob_starts_the_runtime_beside_it(tmp_path: Path) -> None:
    target = ("--profile", "multi-h100", "--nodes", "2", "--kind", "trainjob")
    objects = render_run(write_config(tmp_path), tmp_path / "out", *target)
    job, runtime = objects["trainjob.yaml"], objects["training-runtime.yaml"]
    reference = job["spec"]["runtimeRef"]
    assert reference["kind"] == runtime["kind"]
    assert reference["name"] == runtime["metadata"]["name"]
    assert reference["apiGroup"] == runtime["apiVersion"].partition("/")[0]
    assert job["spec"]["trainer"]["numNodes"] == runtime["spec"]["mlPolicy"]["numNodes"] == 2
    # How the Trainer finds the pods it is to multiply. Source: kubeflow.org, "Job Template".
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    labels = replicated["template"]["metadata"]["labels"]
    assert labels["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    assert container_of(objects)["name"] == "node"


def test_several_nodes_share_their_volumes(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    for nodes, mode in ((1, "ReadWriteOnce"), (2, "ReadWriteMany")):
        target = ("--profile", "multi-a100-80gb", "--nodes", str(nodes))
        objects = render_run(config, tmp_path / mode, *target)
        claims = {each for each in objects if each.startswith("volume-")}
        assert claims == {f"volume-{role}.yaml" for role in ("runs", "cache", "models", "data")}
        assert {objects[each]["spec"]["accessModes"][0] for each in claims} == {mode}


def test_claims_that_exist_are_used_and_not_made(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    given = ("--claim", "models=shared", "--claim", "cache=hub", "--profile", "single-80gb")
    objects = render_run(config, tmp_path / "out", *given)
    assert {"volume-models.yaml", "volume-cache.yaml"}.isdisjoint(objects)
    used = {
        each["name"]: each["persistentVolumeClaim"]["claimName"]
        for each in pod_of(objects)["volumes"]
        if "persistentVolumeClaim" in each
    }
    assert used == {
        "runs": "rankzero-one-runs",
        "cache": "hub",
        "models": "shared",
        "data": "rankzero-one-data",
    }
    for bad in ("models", "disk=x", "models=Not A Name", "data="):
        with pytest.raises(ConfigError, match="--claim"):
            render_run(config, tmp_path / "bad", "--profile", "single-80gb", "--claim", bad)
    hub = ("--set", "model.name=meta/llama-3.2-1b", "--claim", "models=shared")
    with pytest.raises(ConfigError, match="reads no models there"):
        render_run(config, tmp_path / "bad", "--profile", "single-80gb", *hub)


def test_the_kustomization_lists_what_is_there(tmp_path: Path) -> None:
    objects = render_run(write_config(tmp_path), tmp_path / "out", "--profile", "single-80gb")
    listed = objects.pop("kustomization.yaml")["resources"]
    assert sorted([*listed, "files-pod.yaml"]) == sorted(objects)


def test_the_pod_to_copy_files_has_the_runs_volumes_and_is_none_of_its_pods(tmp_path: Path) -> None:
    objects = render_run(write_config(tmp_path), tmp_path / "out", "--profile", "single-80gb")
    pod, job = objects["files-pod.yaml"], objects["job.yaml"]["spec"]["template"]
    own, its = pod["spec"]["containers"][0], job["spec"]["containers"][0]
    places = {mount["name"]: mount["mountPath"] for mount in its["volumeMounts"]}
    copied = {mount["name"]: mount["mountPath"] for mount in own["volumeMounts"]}
    assert copied == {role: places[role] for role in ("runs", "models", "data")}
    assert not any(mount.get("readOnly") for mount in own["volumeMounts"])
    claims = [volume for volume in job["spec"]["volumes"] if volume["name"] in copied]
    assert pod["spec"]["volumes"] == claims
    # The files are written by the user who will read them, and the namespace lets the pod in.
    for level in ("spec", "container"):
        mine, theirs = (pod["spec"], job["spec"]) if level == "spec" else (own, its)
        assert mine["securityContext"] == theirs["securityContext"]
    service = {"app.kubernetes.io/name": "rankzero", "app.kubernetes.io/instance": "rankzero-one"}
    assert not service.items() <= pod["metadata"]["labels"].items()
    assert service.items() <= job["metadata"]["labels"].items()


def test_the_same_run_gives_the_same_bytes_and_another_is_not_mixed_in(tmp_path: Path) -> None:
    config, out = write_config(tmp_path), tmp_path / "out"
    target = ("--profile", "multi-a100-80gb", "--nodes", "2")
    render_run(config, out, *target)
    before = {path: path.read_bytes() for path in out.iterdir()}
    render_run(config, out, *target)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(ConfigError, match=r"service\.yaml, which this run does not have"):
        render_run(config, out, "--profile", "multi-a100-80gb", "--nodes", "1")
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        render_run(config, tmp_path / "file" / "out", *target)


def _in_pod(objects: Objects, folder: Path) -> Path:
    """Write the ConfigMap as a pod sees it, with `folder` where it is mounted."""
    for name, text in objects["configmap.yaml"]["data"].items():
        (folder / name).write_text(text.replace("/etc/rankzero", str(folder)), encoding="utf-8")
    return folder / "run.yaml"


EXAMPLES = sorted((ROOT / "examples").glob("*.yaml")) + sorted((ROOT / "examples").glob("*.json"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_a_pod_reads_the_run_that_was_rendered(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    changes = ("--set", "model.name=/weights/llama-3.2-1b", "--set", "seed=7")
    objects = render_run(example, tmp_path / "out", *changes, "--profile", "single-80gb")
    path = _in_pod(objects, tmp_path)
    here, there = load_config(example, [changes[1], changes[3]]), load_config(path)
    ours, theirs = (each.model_dump(mode="json") for each in (here, there))
    assert theirs["output_dir"] == f"/runs/{Path(here.output_dir).name}"
    assert theirs["model"].pop("name") == "/models/llama-3.2-1b"
    for split in ("train", "validation", "test"):
        for mine, given in zip(theirs["data"][split], ours["data"][split], strict=True):
            assert mine["path"] == f"/data/{Path(given['path']).name}"
            mine["path"] = given["path"]
    ours["model"].pop("name")
    settings = here.training.deepspeed_config
    if settings is not None:
        there_too = Path(theirs["training"].pop("deepspeed_config"))
        assert there_too.read_bytes() == Path(ours["training"].pop("deepspeed_config")).read_bytes()
    assert theirs | {"output_dir": ours["output_dir"]} == ours
    # Pods plan again, and must come to the plan whose numbers they were given.
    target = Target(profile="single-80gb")
    again = plan_run(path, [], target).plan
    first = plan_run(example, [changes[1], changes[3]], target).plan
    assert again.usage == first.usage
    assert again.shutdown_timeout_seconds == first.shutdown_timeout_seconds


def test_no_text_of_the_users_becomes_yaml(tmp_path: Path) -> None:
    text = 'a: {b}\n- "c" #\n$(HOSTNAME) %d \t'
    name = "runs/My run: {№ 1} '#"
    for prompt in (text, "y", "1e5", "0x1f", "null", "2024-01-01", "yes", "- a"):
        config = write_config(tmp_path, output_dir=name, data={})
        values = json.loads(config.read_text())
        values["data"] = {"train": str(tmp_path / "rows.jsonl"), "system_prompt": prompt}
        values["model"]["revision"] = "12e5678"  # a commit, not 12 x 10^5678
        config.write_text(json.dumps(values))
        objects = render_run(config, tmp_path / "out", "--profile", "single-80gb", "--queue", "1e5")
        read = load_config(_in_pod(objects, tmp_path))
        assert read.data.system_prompt == prompt
        assert read.model.revision == "12e5678"
        assert read.output_dir == f"/runs/{Path(name).name}"
        for each in objects.values():
            assert len(each.get("metadata", {}).get("name", "")) <= LONGEST_LABEL
    # Go's YAML reads it as a number unless it is quoted.
    assert "queue-name: '1e5'" in (tmp_path / "out" / "job.yaml").read_text()


def test_small_files_travel_with_the_config(tmp_path: Path) -> None:
    rules, template = tmp_path / "my rules.yaml", tmp_path / "chat.jinja"
    rules.write_text("categories: []\n")
    template.write_text("{{ messages }}")
    profile = tmp_path / "mine.yaml"
    shipped = load_profile("single-80gb").model_dump(mode="json")
    profile.write_text(json.dumps({**shipped, "name": "mine"}), encoding="utf-8")
    config = write_config(
        tmp_path,
        data={"train": str(tmp_path / "rows.jsonl"), "chat_template": str(template)},
        safety={"enabled": True, "rules": str(rules)},
        evaluation={"every_steps": 5},
    )
    values = json.loads(config.read_text())
    values["data"]["validation_size"] = 0.1
    config.write_text(json.dumps(values))
    objects = render_run(config, tmp_path / "out", "--profile", str(profile))
    data = objects["configmap.yaml"]["data"]
    assert data["my_rules.yaml"] == rules.read_text()
    assert data["chat.jinja"] == template.read_text()
    assert container_of(objects)["args"][2:4] == ["--profile", "/etc/rankzero/mine.yaml"]
    assert load_profile(_in_pod(objects, tmp_path).parent / "mine.yaml").name == "mine"
    read = yaml.safe_load(data["run.yaml"])
    assert read["safety"]["rules"] == "/etc/rankzero/my_rules.yaml"
    assert read["data"]["chat_template"] == "/etc/rankzero/chat.jinja"
    template.write_text("x" * 2**20)
    with pytest.raises(ConfigError, match="ConfigMap, which holds 1 MiB"):
        render_run(config, tmp_path / "large", "--profile", str(profile))


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    config = write_config(tmp_path)
    (tmp_path / "b" / "rows.jsonl").write_text("{}\n")
    paths = [str(tmp_path / "rows.jsonl"), str(tmp_path / "b" / "rows.jsonl")]
    more = f"data.train={json.dumps(paths)}"
    with pytest.raises(ConfigError, match=r"the same name: rows\.jsonl"):
        render_run(config, tmp_path / "out", "--profile", "single-80gb", "--set", more)


def test_this_machine_is_no_profile_of_a_clusters(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--profile auto is this machine"):
        render_run(write_config(tmp_path), tmp_path / "out", "--profile", "auto")
