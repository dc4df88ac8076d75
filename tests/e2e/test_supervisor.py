"""Whatever dies, the launcher ends soon, tells the cause, and leaves no process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.commands import read_json, write_config
from tests.tiny import make_model_folder
from trainer.attempt import VARIABLE

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed runs on Linux"),
]

ROOT = Path(__file__).parents[2]
# As `rankzero train` does it: the run directory, then the engine's command.
DRIVER = """
import sys
from pathlib import Path
import click
from launcher.attempt import Attempt
from launcher.supervise import supervise
from trainer.errors import RankZeroError
try:
    attempt = Attempt.create(Path(sys.argv[1]))
    sys.exit(supervise(sys.argv[2:], attempt=attempt, how_to_go_on="run it again"))
except RankZeroError as error:
    click.echo(f"error: {error}", err=True)
    sys.exit(error.exit_code)
"""
ENGINES = {
    "python": (),
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    "accelerate": (
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--main_process_port", "0"),
    ),
    "deepspeed": ("-m", "deepspeed.launcher.runner", "--num_gpus", "2"),
}
ENDLESS: dict[str, Any] = {
    # So many steps would be worth compiling for.
    "training": {"max_steps": 100_000, "dataloader_workers": 1, "compile": False},
    "evaluation": {"every_steps": 50_000, "at_start": False},
}
PATIENCE_SECONDS = 300  # for what a loaded machine does slowly


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


@dataclass
class Supervised:
    """A launcher at work, and the run directory it works on."""

    run: Path
    process: subprocess.Popen[str]

    @property
    def attempt(self) -> Path:
        return self.run / "attempts" / "001"

    def record(self, rank: int) -> dict[str, Any]:
        content = read_json(self.attempt / f"rank-{rank}.json")
        assert isinstance(content, dict)
        return content

    def until_training(self) -> None:
        """Return once the first step is done."""
        metrics = self.run / "metrics.jsonl"
        while not metrics.exists():
            try:
                self.process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"ended before training: {self.process.communicate()[1]}")

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, errors

    def processes(self) -> list[psutil.Process]:
        """Everything that carries this attempt in its environment, wherever it went."""
        mark = str(self.attempt)
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get(VARIABLE) == mark
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


Start = Callable[..., Supervised]


@pytest.fixture
def start(base: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a run; what a failed test leaves is ended."""
    started = []

    def start(engine: str, **how: Any) -> Supervised:
        started.append(start_run(engine, how.pop("base", base), tmp_path, **how))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        for process in each.processes():
            process.kill()
        each.process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start_run(
    engine: str, base: Path, tmp_path: Path, *, faults: str = "", before: tuple[str, ...] = ()
) -> Supervised:
    run = tmp_path / "a run"
    config = write_config(tmp_path / "run.json", base, run, **ENDLESS)
    module = "tests.e2e.faulty_trainer" if faults else "trainer"
    as_module = ("--module", module) if engine == "deepspeed" else ("-m", module)
    port = ("--master_port", str(free_port())) if engine == "deepspeed" else ()
    command = [sys.executable, *ENGINES[engine], *port, *as_module, "--config", str(config)]
    process = subprocess.Popen(
        [*before, sys.executable, "-c", DRIVER, str(run), *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "RANKZERO_TEST_FAULTS": faults,
        },
    )
    return Supervised(run, process)


@pytest.mark.parametrize(
    ("engine", "faults", "cause"),
    [
        ("python", "0:killed", "was killed by SIGKILL"),
        ("torchrun", "1:killed", "rank 1 (pid {pid}, host {host}) was killed by SIGKILL"),
        ("torchrun", "1:raise", "rank 1: KeyError: 'a bug of rank 1'"),
        ("torchrun", "1:memory", "rank 1: out of memory: "),
        ("torchrun", "1:leave,0:stuck", "rank 1 (pid {pid}, host {host}) ended with code 0 before"),
        ("accelerate", "1:gpu-memory", "rank 1: out of memory: CUDA out of memory"),
        ("deepspeed", "1:killed", "rank 1 (pid {pid}, host {host}) was killed by SIGKILL"),
    ],
)
def test_a_failing_rank_ends_the_run_and_is_named(
    engine: str, faults: str, cause: str, start: Start
) -> None:
    started = start(engine, faults=faults)
    code, errors = started.end()
    rank = int(faults[0])
    assert code == 4, errors
    assert cause.format(**started.record(rank)) in errors
    assert errors.count("\nerror: ") == 1
    assert started.processes() == []
    status = read_json(started.run / "status.json")
    assert (status["state"], status["rank"], status["exit_code"]) == ("failed", rank, 4)


# Accelerate runs torchrun's agent.
@pytest.mark.parametrize("engine", ["python", "torchrun", "deepspeed"])
def test_nothing_outlives_the_launcher(engine: str, start: Start) -> None:
    started = start(engine)
    started.until_training()
    processes = started.processes()
    assert len(processes) > 1
    started.process.kill()
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_SECONDS)
    assert alive == []
    assert started.processes() == []
    assert started.record(0)["state"] == "interrupted"


@pytest.mark.parametrize("engine", ["torchrun", "deepspeed"])
def test_a_killed_engine_ends_the_run(engine: str, start: Start) -> None:
    started = start(engine)
    started.until_training()
    (child,) = psutil.Process(started.process.pid).children()
    child.kill()
    code, errors = started.end()
    assert code == 4, errors
    assert "was killed by SIGKILL" in errors
    assert started.processes() == []


# Other engines, signals and receivers: tests/e2e/test_preemption.py.
def test_a_closed_terminal_stops_and_saves_every_rank(start: Start) -> None:
    started = start("deepspeed")
    started.until_training()
    started.process.send_signal(signal.SIGHUP)
    code, errors = started.end()
    assert code == 75, errors
    # Passed on as what ranks know.
    assert "error: stopped by SIGTERM after step " in errors
    assert errors.endswith("  fix:  run it again\n")
    records = [started.record(rank) for rank in (0, 1)]
    assert [record["state"] for record in records] == ["interrupted"] * 2, records
    assert [record["exit_code"] for record in records] == [75] * 2, records
    checkpoint = started.run / "checkpoints" / "latest"
    assert f"after step {read_json(checkpoint / 'state.json')['step']} of " in errors
    status = read_json(started.run / "status.json")
    assert (status["state"], status["exit_code"]) == ("interrupted", 75)
    assert started.processes() == []


@pytest.mark.parametrize("engine", ["torchrun", "deepspeed"])
def test_as_pid_1_a_request_reaches_every_rank(engine: str, start: Start) -> None:
    namespace = ("unshare", "--pid", "--fork", "--mount-proc")
    if subprocess.run([*namespace, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not make a PID namespace")
    started = start(engine, before=namespace)
    started.until_training()
    (launcher,) = psutil.Process(started.process.pid).children()
    launcher.send_signal(signal.SIGTERM)
    code, errors = started.end()
    assert code == 75, errors
    assert [started.record(rank)["state"] for rank in (0, 1)] == ["interrupted"] * 2
    assert started.processes() == []


def test_a_mistake_is_said_once(start: Start, tmp_path: Path) -> None:
    started = start("torchrun", base=tmp_path / "no model")
    code, errors = started.end()
    assert code in (2, 3), errors
    assert errors.count("no model") == errors.count("error: ") == 1
