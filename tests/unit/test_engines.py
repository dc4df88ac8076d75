"""Command lines of the four engines: what is asked for is in them, what cannot start is refused."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from launcher.engines import Launch, make_engine_command, shell_line
from launcher.engines.launch import EngineCommand
from launcher.engines.rendezvous import free_local_rendezvous
from launcher.start import threads_of, visible_devices
from trainer.errors import ConfigError

RESOLVED = Path("/runs/my run/resolved.json")
FOLDER = Path("/runs/my run/attempts/001")
MEETING = "10.0.0.7:4321"


def launch(**changes: Any) -> Launch:
    settings: dict[str, Any] = {
        "python": "/opt/my python/bin/python",
        "resolved": RESOLVED,
        "folder": FOLDER,
        "processes": 2,
        "precision": "bf16",
        "shutdown_timeout_seconds": 120,
        "rendezvous": MEETING,
        "deepspeed_config": Path("zero2.json"),
    }
    return Launch(**settings | changes)


def accelerate_settings(command: EngineCommand) -> dict[str, Any]:
    (text,) = command.files.values()
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings


def world_info(command: EngineCommand) -> dict[str, list[str]]:
    (given,) = (word for word in command.argv if word.startswith("--world_info="))
    nodes: dict[str, list[str]] = json.loads(base64.urlsafe_b64decode(given.partition("=")[2]))
    return nodes


@pytest.mark.parametrize("engine", ["python", "torchrun", "accelerate", "deepspeed"])
def test_every_engine_starts_the_trainer_on_the_resolved_config(engine: Any) -> None:
    command = make_engine_command(engine, launch(processes=1))
    assert command.argv[0] == "/opt/my python/bin/python"
    assert command.argv[-3:] == ["trainer", "--config", str(RESOLVED)]


@pytest.mark.parametrize("engine", ["python", "torchrun", "accelerate", "deepspeed"])
def test_what_to_go_on_from_is_passed_on(engine: Any) -> None:
    command = make_engine_command(engine, launch(processes=1, resume="/runs/other one"))
    assert command.argv[-2:] == ["--resume", "/runs/other one"]


@pytest.mark.parametrize("engine", ["torchrun", "accelerate"])
def test_the_time_to_save_is_given_to_torchrun(engine: Any) -> None:
    environment = make_engine_command(engine, launch()).environment
    assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "120"


@pytest.mark.parametrize("engine", ["torchrun", "accelerate", "deepspeed"])
def test_processes_share_the_cores_out_unless_the_user_did(engine: Any) -> None:
    assert make_engine_command(engine, launch(threads=12)).environment["OMP_NUM_THREADS"] == "12"
    assert "OMP_NUM_THREADS" not in make_engine_command(engine, launch()).environment


def test_the_threads_of_a_process_are_its_share_of_the_cores() -> None:
    plan = SimpleNamespace(processes_per_node=8)
    profile = SimpleNamespace(host=SimpleNamespace(cpu_cores=96.0))
    planned: Any = SimpleNamespace(plan=plan, profile=profile)
    assert threads_of(planned, {}) == 12
    assert threads_of(planned, {"OMP_NUM_THREADS": "3"}) is None
    profile.host.cpu_cores = 2.0
    assert threads_of(planned, {}) == 1
    plan.processes_per_node = 1
    assert threads_of(planned, {}) is None


def test_two_runs_on_one_machine_share_no_port() -> None:
    assert "--standalone" in make_engine_command("torchrun", launch(rendezvous=None)).argv
    one_node = make_engine_command("accelerate", launch(rendezvous=None))
    assert accelerate_settings(one_node)["main_process_port"] == 0
    # DeepSpeed's launcher has a fixed default; it gets a port, and never starts without.
    with pytest.raises(ConfigError, match="--rendezvous: not given"):
        make_engine_command("deepspeed", launch(rendezvous=None))
    places = {free_local_rendezvous() for _ in range(8)}
    assert len(places) > 1
    assert all(launch(rendezvous=place).address()[0] == "127.0.0.1" for place in places)


def test_torchrun_numbers_the_nodes_as_told() -> None:
    argv = make_engine_command("torchrun", launch(nodes=3, node_rank=2)).argv
    assert {"--nnodes=3", "--node-rank=2", "--nproc-per-node=2"} < set(argv)
    assert {"--rdzv-backend=static", f"--rdzv-endpoint={MEETING}"} < set(argv)
    assert "--standalone" not in argv


def test_accelerate_counts_processes_of_all_nodes() -> None:
    settings = accelerate_settings(
        make_engine_command("accelerate", launch(nodes=2, node_rank=1, device="cpu"))
    )
    assert settings["num_processes"] == 4
    assert (settings["num_machines"], settings["machine_rank"]) == (2, 1)
    assert (settings["main_process_ip"], settings["main_process_port"]) == ("10.0.0.7", 4321)
    assert settings["use_cpu"] is True


@pytest.mark.parametrize(("precision", "expected"), [("bf16", "bf16"), ("fp32", "no")])
def test_accelerate_is_told_the_precision(precision: str, expected: str) -> None:
    settings = accelerate_settings(make_engine_command("accelerate", launch(precision=precision)))
    assert settings["mixed_precision"] == expected  # plain `no` would be read as false


def test_deepspeed_uses_the_devices_that_are_visible() -> None:
    there = launch(nodes=2, node_rank=1, devices=("5", "7", "9"))
    nodes = world_info(make_engine_command("deepspeed", there))
    assert [len(slots) for slots in nodes.values()] == [2, 2]
    assert nodes["node-1"] == ["5", "7"]


def test_deepspeed_on_a_cpu_is_told_so() -> None:
    command = make_engine_command("deepspeed", launch(device="cpu"))
    assert command.environment["DS_ACCELERATOR"] == "cpu"


@pytest.mark.parametrize("engine", ["python", "torchrun", "accelerate", "deepspeed"])
def test_a_plan_for_the_cpu_hides_the_gpus(engine: Any) -> None:
    on_cpu = make_engine_command(engine, launch(processes=1, device="cpu"))
    assert shell_line(on_cpu).startswith("CUDA_VISIBLE_DEVICES='' ") or (
        " CUDA_VISIBLE_DEVICES='' " in shell_line(on_cpu)
    )
    on_gpu = make_engine_command(engine, launch(processes=1))
    assert "CUDA_VISIBLE_DEVICES" not in on_gpu.environment


@pytest.mark.parametrize(
    ("value", "devices"),
    [("2, 3", ("2", "3")), ("GPU-1f,GPU-2a", ("GPU-1f", "GPU-2a")), ("1,-1,2", ("1",)), ("", ())],
)
def test_the_devices_of_the_environment_are_passed_on(value: str, devices: tuple[str, ...]) -> None:
    assert visible_devices({"CUDA_VISIBLE_DEVICES": value}) == devices
    assert visible_devices({}) == ()


@pytest.mark.parametrize(
    ("engine", "changes", "message"),
    [
        ("python", {"processes": 2}, "python with 2 processes"),
        ("python", {"processes": 1, "nodes": 2}, "python with 2 processes"),
        ("deepspeed", {"deepspeed_config": None}, "without a DeepSpeed config"),
        ("torchrun", {"nodes": 2, "rendezvous": None}, "--rendezvous: not given"),
        ("accelerate", {"nodes": 2, "rendezvous": "node-0"}, "'node-0' is no host:port"),
        ("torchrun", {"nodes": 2, "rendezvous": "node-0:http"}, "no host:port"),
        ("torchrun", {"nodes": 2, "node_rank": 2}, "--node-rank 2 with 2"),
        ("torchrun", {"processes": 0}, "0 processes"),
        ("torchrun", {"device": "mps"}, "2 processes on Apple MPS"),
        ("torchrun", {"devices": ("3",)}, "2 processes for the devices 3"),
    ],
)
def test_what_cannot_start_is_refused_with_a_fix(
    engine: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_engine_command(engine, launch(**changes))
    assert caught.value.rule
    assert caught.value.fix


def test_an_address_may_be_ipv6() -> None:
    assert launch(rendezvous="[fe80::1]:29400").address() == ("fe80::1", 29400)


def test_the_shell_line_means_the_same_as_the_command() -> None:
    awkward = 'it\'s $HOME; * "and" `so`'
    command = EngineCommand(
        [
            sys.executable,
            "-c",
            "import os,sys;print(os.environ['A B'[0]]);print(sys.argv[1])",
            awkward,
        ],
        environment={"A": awkward},
    )
    said = subprocess.run(
        ["/bin/sh", "-c", shell_line(command)], capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines() == [awkward, awkward]
    assert shlex.split(shell_line(command))[1:] == command.argv
    assert "A" not in os.environ
