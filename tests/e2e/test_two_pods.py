"""A training on two nodes, started from its rendered Job: pods come, go and come back."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from launcher.commands.render import render
from tests.commands import read_json
from tests.e2e.pods import Job, Pod, all_mounts, pod_network
from tests.e2e.running import LOOK_SECONDS, PATIENCE_SECONDS, newest_step, write_eventful_config
from tests.resuming import logged, require_same_run
from tests.tiny import make_model_folder

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="pods run on Linux"),
]

STEPS = 40


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render a two-node run of a tiny model, with a merged model as its last step."""
    folder = tmp_path_factory.mktemp("cluster")
    base = make_model_folder(folder / "models" / "tiny")
    config = write_eventful_config(folder, base, steps=STEPS, zero=None)
    (folder / "data").mkdir()
    (folder / "cache").mkdir()
    shutil.copy(folder / "rows.jsonl", folder / "data")
    made = folder / "manifests"
    options = ["--profile", "cpu", "--nodes", "2", "--set", "merge.after_training=true"]
    result = CliRunner().invoke(render, [str(config), *options, "--output", str(made)])
    assert result.exit_code == 0, result.output
    return made


@contextmanager
def on_a_cluster(manifests: Path, folder: Path) -> Iterator[Job]:
    """A Job that nobody has started, with a runs volume of its own."""
    for role in ("models", "data", "cache"):
        (folder / role).symlink_to(manifests.parent / role)
    (folder / "runs").mkdir()
    own = shutil.copytree(manifests, folder / "manifests")
    with pod_network(("rankzero-straight-0", "rankzero-straight-1"), folder) as network:
        job = Job(own, network, all_mounts(folder))
        job.write_config()
        try:
            yield job
        finally:
            job.kill_all()


@pytest.fixture
def job(manifests: Path, tmp_path: Path) -> Iterator[Job]:
    with on_a_cluster(manifests, tmp_path) as job:
        yield job


@pytest.fixture(scope="module")
def straight(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of the same two nodes that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight")
    with on_a_cluster(manifests, folder) as job:
        job.network.make_known()
        pods = [job.start(0), job.start(1)]
        assert [job.end(pod) for pod in pods] == [0, 0], pods[0].said[-3000:]
    return folder / "runs" / "straight"


def until(pod: Pod, words: str) -> None:
    """Return once a pod has said this."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while words not in pod.said:
        assert pod.process.poll() is None, f"ended before {words!r}: {pod.said[-3000:]}"
        assert time.monotonic() < deadline, f"never said {words!r}: {pod.said[-3000:]}"
        time.sleep(LOOK_SECONDS * 10)


def until_saved(pod: Pod, run: Path, step: int) -> None:
    while not list((run / "checkpoints").glob(f"step-{step:06d}")):
        assert pod.process.poll() is None, pod.said[-3000:]
        time.sleep(LOOK_SECONDS)


def test_a_pod_that_is_asked_to_leave_comes_back_and_the_run_ends_exactly(
    job: Job, straight: Path
) -> None:
    run = job.mounts["/runs"] / "straight"
    late = job.start(1)  # before node 0, whose name nobody knows yet
    waiting = "waiting for node 0 at"
    until(late, waiting)
    if job.network.namespaces:
        until(late, "the name does not resolve yet")
        job.network.make_known()
        until(late, "Connection refused")
    first = job.start(0)
    until_saved(first, run, 7)
    late.process.send_signal(signal.SIGTERM)
    codes = [job.end(pod) for pod in (first, late)]
    assert codes == [75, 75], first.said[-3000:] + late.said[-3000:]
    assert [job.policy(code) for code in codes] == ["Ignore", "Ignore"]
    assert read_json(run / "status.json")["exit_code"] == 75
    stopped_at = newest_step(run)
    assert 7 <= stopped_at < STEPS

    back = [job.start(0), job.start(1)]
    assert [job.end(pod) for pod in back] == [0, 0], back[0].said[-3000:]
    assert f"going on from {run}/checkpoints/step-{stopped_at:06d}" in back[0].said
    require_same_run(run, straight)
    assert logged(run) == logged(straight)
    merged = "model.safetensors"
    assert (run / "merged" / merged).read_bytes() == (straight / "merged" / merged).read_bytes()
    # A pod whose index is done already and that is started again has nothing to do.
    again = job.start(1)
    assert job.end(again) == 0
    assert "is complete: nothing to do" in again.said


def test_a_pod_that_is_killed_ends_the_other_and_both_go_on(job: Job, straight: Path) -> None:
    run = job.mounts["/runs"] / "straight"
    # A disk of its own: what node 0 saves reaches the others over the network.
    elsewhere = ("--set", f"output_dir={job.mounts['/runs'] / 'of node 1'}")
    job.network.make_known()
    pods = [job.start(0), job.start(1, *elsewhere)]
    until_saved(pods[0], run, 5)
    launcher = psutil.Process(pods[1].process.pid)
    for process in (launcher, *launcher.children(recursive=True)):  # as a container dies
        process.kill()
    assert job.end(pods[1]) == -signal.SIGKILL
    back = [job.start(1, *elsewhere)]  # there first, and must not join what is left of the attempt
    assert job.end(pods[0]) == 4, pods[0].said[-3000:]
    assert [job.policy(code) for code in (4, -signal.SIGKILL)] == ["Count", "Count"]
    back.insert(0, job.start(0))
    assert [job.end(pod) for pod in back] == [0, 0], back[0].said[-3000:]
    require_same_run(run, straight)


def test_nodes_with_other_settings_do_not_begin(job: Job) -> None:
    job.network.make_known()
    folder = job.mounts["/etc/rankzero"]
    first = job.start(0)
    until(first, "waiting for node 1")
    config = folder / "run.yaml"
    config.write_text(config.read_text().replace("learning_rate: 0.01", "learning_rate: 0.02"))
    second = job.start(1)
    assert [job.end(pod) for pod in (first, second)] == [2, 2]
    for pod in (first, second):
        assert "training.learning_rate is 0.01 on node 0 and 0.02 there" in pod.said
    assert job.policy(2) == "FailJob"
    assert read_json(job.mounts["/runs"] / "straight" / "status.json")["exit_code"] == 2
