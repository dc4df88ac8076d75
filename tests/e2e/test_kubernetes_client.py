"""`rankzero submit`, `status`, `logs` and `cancel` against what a real API server said.

tests/kubernetes_server tells where the answers come from, and how the same tests run against a
real server.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.commands import EXAMPLE_DATA, write_config
from tests.kubernetes_server.made import MADE, read_made
from tests.kubernetes_server.replay import Replay
from tests.kubernetes_server.stage import Stage, stage, write_kubeconfig
from tests.tiny import make_model_folder

pytestmark = pytest.mark.e2e

NAME = "rankzero-one"
PATIENCE_SECONDS = 300
LOOK_SECONDS = 0.05


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@dataclass
class Cluster:
    """A scenario's server, and commands that talk to it."""

    stage: Stage
    folder: Path
    config: Path = Path()
    started: list[Command] = field(default_factory=list)

    def begin(self, *arguments: str | Path) -> Command:
        """Start `rankzero ARGUMENTS`."""
        number = len(self.started)
        command = Command(self.folder / f"{number}.out", self.folder / f"{number}.err")
        command.start([*map(str, arguments)], self.stage.environment)
        self.started.append(command)
        return command

    def run(self, *arguments: str | Path, code: int = 0) -> Command:
        """Run `rankzero ARGUMENTS` to its end, which must be this exit code."""
        command = self.begin(*arguments)
        assert command.end() == code, command.said
        return command

    def submit(self, *arguments: str | Path) -> Command:
        return self.begin("submit", self.config, "--profile", "single-80gb", *arguments)


@dataclass
class Command:
    """One command at work; what it prints goes to two files."""

    out: Path
    err: Path

    def start(self, arguments: list[str], environment: dict[str, str]) -> None:
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "launcher", *arguments],
                stdout=out,
                stderr=err,
                env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", **environment},
            )

    @property
    def printed(self) -> str:
        return self.out.read_text(encoding="utf-8")

    @property
    def said(self) -> str:
        return self.err.read_text(encoding="utf-8")

    def until_it_says(self, text: str) -> None:
        """Return once it has, while it lives."""
        end = time.monotonic() + PATIENCE_SECONDS
        while text not in self.said + self.printed:
            assert self.process.poll() is None, f"ended before {text!r}: {self.said}"
            assert time.monotonic() < end, f"never said {text!r}: {self.said}"
            time.sleep(LOOK_SECONDS)

    def interrupt(self) -> int:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> int:
        """Return its exit code, once it has ended."""
        return self.process.wait(timeout=PATIENCE_SECONDS)


Play = Callable[[str], AbstractContextManager[Cluster]]


@pytest.fixture
def play(tmp_path: Path, model: Path) -> Iterator[Play]:
    """Set scenarios up; what a failed test leaves of the commands is ended."""
    rows = tmp_path / "rows.jsonl"
    lines = (EXAMPLE_DATA / "medical_qa.jsonl").read_text(encoding="utf-8").splitlines()
    rows.write_text("\n".join(lines[:80]) + "\n", encoding="utf-8")
    config = write_config(tmp_path / "run.json", model, Path("runs/one"), data={"train": str(rows)})
    clusters: list[Cluster] = []

    @contextmanager
    def begin(scenario: str) -> Iterator[Cluster]:
        with stage(scenario, tmp_path) as found:
            clusters.append(Cluster(found, tmp_path, config))
            yield clusters[-1]

    yield begin
    for command in (each for cluster in clusters for each in cluster.started):
        command.process.kill()
        command.process.wait()


INTERRUPTED_BY_KEYBOARD = 130


def test_a_run_completes_and_its_log_is_printed_once(play: Play) -> None:
    with play("complete") as cluster:
        submitted = cluster.submit()
        assert submitted.end() == 0, submitted.said
        printed = submitted.printed.splitlines()
        steps = [f"step {number}/6" for number in range(1, 7)]
        assert [line.partition("  ")[0] for line in printed] == [
            "rankzero 0.1.0: preparing data",
            *steps,
            "completed",
        ]
        status = json.loads(cluster.run("status", cluster.config, "--json").printed)
        assert status["phase"] == "completed"
        assert status["outcome"]["exit_code"] == 0
        assert status["last_lines"] == printed[-len(status["last_lines"]) :]
        assert cluster.run("logs", NAME).printed == submitted.printed
        assert "rankzero-one-runs" in cluster.run("cancel", NAME).said  # is kept
        assert f"no run {NAME}" in cluster.run("status", NAME, code=2).said


def test_a_finished_run_submitted_again_is_made_anew(play: Play) -> None:
    with play("again") as cluster:
        first = cluster.submit()
        assert first.end() == 0, first.said
        second = cluster.submit("--detach")
        assert second.end() == 0, second.said
        assert f"rankzero logs {NAME}" in second.said
        followed = cluster.begin("logs", NAME, "--follow")
        followed.until_it_says("resuming from checkpoint-1")
        assert followed.interrupt() == INTERRUPTED_BY_KEYBOARD
        assert "step 1/1" not in followed.printed  # the first run's
        cluster.run("cancel", NAME)


def test_waiting_for_a_gpu_is_told_and_interrupting_it_leaves_the_run(play: Play) -> None:
    with play("no-gpu") as cluster:
        submitted = cluster.submit()
        submitted.until_it_says("Insufficient nvidia.com/gpu")
        assert submitted.interrupt() == INTERRUPTED_BY_KEYBOARD
        come_back = f"--namespace {cluster.stage.namespace}"
        assert f"rankzero logs {NAME} {come_back} --follow" in submitted.said
        assert f"rankzero cancel {NAME} {come_back}" in submitted.said
        status = json.loads(cluster.run("status", NAME, "--json").printed)
        assert status["phase"] == "waiting"
        assert "nvidia.com/gpu" in cluster.run("status", NAME).printed
        assert NAME in cluster.run("status").printed
        cluster.run("cancel", NAME)


def test_a_gpu_that_comes_later_ends_the_waiting(play: Play) -> None:
    with play("gpu-later") as cluster:
        submitted = cluster.submit()
        assert submitted.end() == 0, submitted.said
        assert submitted.said.count("Insufficient nvidia.com/gpu") == 1
        assert submitted.printed == "step 1/1  epoch 1.00  loss 2.412\n"


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        ("quota", "exceeded quota: team"),
        ("image", "ImagePullBackOff"),
        ("unbound", "not bound, storage class test"),
    ],
)
def test_what_a_pod_waits_for_is_told(play: Play, scenario: str, reason: str) -> None:
    with play(scenario) as cluster:
        submitted = cluster.submit()
        submitted.until_it_says(reason)
        assert submitted.interrupt() == INTERRUPTED_BY_KEYBOARD
        status = " ".join(cluster.run("status", NAME).printed.split())
        assert reason in status
        cluster.run("cancel", NAME)


def test_the_exit_code_and_words_of_the_pod_are_the_commands(play: Play) -> None:
    with play("wrong-config") as cluster:
        submitted = cluster.submit()
        assert submitted.end() == 3
        assert "/runs has 1.2 GiB free, a checkpoint needs 3.4" in submitted.said
        assert "free 2.2 GiB" in submitted.said
        status = json.loads(cluster.run("status", NAME, "--json").printed)
        assert status["outcome"]["exit_code"] == 3
        cluster.run("logs", NAME, "--follow", code=3)


def test_a_preempted_run_is_followed_in_its_next_pod(play: Play) -> None:
    with play("preempted") as cluster:
        submitted = cluster.submit()
        assert submitted.end() == 0, submitted.said
        assert [line.partition("  ")[0] for line in submitted.printed.splitlines()] == [
            "step 1/4",
            "stopped by SIGTERM; saved checkpoint-1",
            "resuming from checkpoint-1",
            "step 2/4",
            "step 3/4",
            "step 4/4",
        ]
        assert cluster.run("logs", NAME, "--all-attempts").printed == submitted.printed
        assert "step 1/4" not in cluster.run("logs", NAME).printed


def test_a_container_killed_for_its_memory_has_failed(play: Play) -> None:
    with play("out-of-memory") as cluster:
        submitted = cluster.submit()
        assert submitted.end() == 4
        assert "memory" in submitted.said


def test_a_cancelled_run_saves_first(play: Play) -> None:
    with play("cancelled") as cluster:
        submitted = cluster.submit()
        submitted.until_it_says("step 2/900")
        assert submitted.interrupt() == INTERRUPTED_BY_KEYBOARD
        cancelled = cluster.run("cancel", NAME)
        assert "submit it again" in cancelled.said
        assert cluster.run("logs", NAME, code=2)
        assert f"no run {NAME}" in cluster.run("cancel", NAME, code=2).said


def test_refusals_come_before_anything_is_made(play: Play) -> None:
    with play("refused") as cluster:
        nowhere = cluster.submit("--namespace", "rankzero-test-nowhere")
        assert nowhere.end() == 3
        assert "rankzero-test-nowhere" in nowhere.said
        no_controller = cluster.submit("--kind", "jobset")
        assert no_controller.end() == 3
        assert "JobSet" in no_controller.said
        no_volume = cluster.submit("--claim", "runs=shared")
        assert no_volume.end() == 3
        assert "shared" in no_volume.said
        cluster.run("status", NAME, code=2)


def test_missing_rights_are_named(play: Play) -> None:
    with play("forbidden") as cluster:
        submitted = cluster.submit()
        assert submitted.end() == 3
        assert "create jobs.batch" in submitted.said
        assert "Traceback" not in submitted.said
        cluster.run("status", NAME, code=3)


def test_an_expired_token_is_told(play: Play) -> None:
    with play("expired") as cluster:
        for arguments in (("status",), ("cancel", NAME), ("logs", NAME)):
            assert "does not accept your credentials" in cluster.run(*arguments, code=3).said


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1", "default")
    cluster = Cluster(Stage("default", {"KUBECONFIG": str(tmp_path / "kubeconfig")}), tmp_path)
    assert "cannot be reached" in cluster.run("status", code=3).said


@pytest.mark.parametrize(
    ("made", "code", "words"),
    [
        ("failed-by-policy", 3, "/runs is full"),
        ("success-criteria", 0, ""),
        ("jobset", 5, "safety check failed"),
        ("trainjob", 0, ""),
    ],
)
def test_what_newer_clusters_say(tmp_path: Path, made: str, code: int, words: str) -> None:
    """Made by hand: see tests/recordings/kubernetes/README.md."""
    with playing_made(made, tmp_path) as cluster:
        followed = cluster.run("logs", NAME, "--follow", code=code)
        assert words in followed.said
        assert followed.printed.count("step 1/") == 1
        status = json.loads(cluster.run("status", NAME, "--json").printed)
        assert status["outcome"]["exit_code"] == code
        assert status["phase"] == ("failed" if code else "completed")


def test_a_queue_says_why_it_waits(tmp_path: Path) -> None:
    """Made by hand: see tests/recordings/kubernetes/README.md."""
    with playing_made("queued", tmp_path) as cluster:
        status = " ".join(cluster.run("status", NAME).printed.split())
        assert "insufficient unused quota" in status
        assert "team" in status


@contextmanager
def playing_made(made: str, folder: Path) -> Iterator[Cluster]:
    with Replay(read_made(MADE / f"{made}.yaml", NAME, "team")) as server:
        write_kubeconfig(folder / "kubeconfig", server.address, "team")
        environment = {
            "KUBECONFIG": str(folder / "kubeconfig"),
            "RANKZERO_POLL_SECONDS": "0.02",
        }
        yield Cluster(Stage("team", environment), folder)
    assert not server.problems
