"""`rankzero doctor` and `rankzero profiles`: honest about each part, whatever breaks."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from torch.utils import cpp_extension

from launcher.cli import rankzero
from launcher.doctor import facts as facts_module
from launcher.doctor.diagnosis import diagnose
from launcher.doctor.facts import Facts, Hub, Tools, find_hub
from launcher.doctor.findings import Finding
from launcher.doctor.packages import PackageState, parse_pins, to_states
from launcher.doctor.probing import Probed, probe_libraries
from launcher.doctor.text import refuse_problems, to_text
from launcher.gpus import GpuReport, SeenGpu
from launcher.hardware import to_detection
from launcher.host import HostFacts
from launcher.profile_file import hardware_table
from trainer.errors import EnvironmentProblem
from trainer.probe import PROBES, is_compiled, probe_torch

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "datasets", "peft", "deepspeed", "accelerate", "numpy"}
CARD = SeenGpu(0, "NVIDIA A100-SXM4-40GB", "GPU-a", 39.5, 39.4, 8.0)
HOST = HostFacts(
    system="Linux",
    machine="x86_64",
    macos_version="",
    memory_gib=64.0,
    memory_source="the machine's RAM",
    memory_available_gib=60.0,
    cpu_cores=8.0,
    cores_source="the machine's cores",
    bf16=False,
    shared_memory_gib=32.0,
    disk_free_gib=100.0,
    disk_path=Path("/data"),
)
TORCH = {
    "version": "2.13.0",
    "built_for_cuda": None,
    "device": "cpu",
    "gpus": [],
    "cuda_error": "Torch not compiled with CUDA enabled",
    "bf16": False,
    "precision": "fp32",
    "precision_reason": "this cpu device has no bf16 instructions",
    "computes": True,
    "threads": 8,
    "nccl": False,
    "gloo": True,
}
CUDA_TORCH = {
    **TORCH,
    "built_for_cuda": "12.8",
    "device": "cuda",
    "gpus": [{"name": CARD.name}],
    "cuda_error": None,
    "bf16": True,
    "precision": "bf16",
    "nccl": True,
}
NO_OPS = {"built": False, "can_be_built": False}
CAN_BE_BUILT = {"built": False, "can_be_built": True}
BUILT = {"built": True, "can_be_built": True}
OPS = {"deepspeed_shm_comm": CAN_BE_BUILT, "async_io": NO_OPS}
CUDA_OPS = {"async_io": CAN_BE_BUILT}


def _deepspeed(ops: dict[str, dict[str, bool]], device: str = "cpu") -> Probed:
    return Probed("found", {"version": "1", "accelerator": device, "ops": ops})


def _probes(torch: dict[str, Any], /, **others: Probed) -> dict[str, Probed]:
    ops = CUDA_OPS if torch["device"] == "cuda" else OPS
    found = {
        "torch": Probed("found", torch),
        "bitsandbytes": Probed("found", {"version": "1", "nf4": True}),
        "deepspeed": _deepspeed(ops, torch["device"]),
        "flash_attn": Probed("absent"),
    }
    return {**found, **others}


def _facts(report: GpuReport | None = None, **changes: Any) -> Facts:
    report = report or GpuReport()
    values: dict[str, Any] = {
        "python": "3.11.9",
        "platform": "Linux",
        "packages": (PackageState("torch", "2.13.0+cpu", ">=2.11", "2.13.0"),),
        "probes": _probes(CUDA_TORCH if report.gpus else TORCH),
        "report": report,
        "visible": report.gpus,
        "detection": to_detection(report, HOST, {}, hardware_table()),
        "host": HOST,
        "tools": Tools("/usr/bin/c++", "/usr/bin/ninja", None, None),
        "memlock_bytes": 8 * 2**20,
        "hub": Hub(Path("/cache"), True, 50.0, (), None),
        **changes,
    }
    return Facts(**values)


GPU_REPORT = GpuReport((CARD,), "570.1", "12.8")


def _bad(facts: Facts) -> dict[str, Finding]:
    alarms = ("warning", "problem")
    return {found.topic: found for found in diagnose(facts) if found.state in alarms}


def _by_topic(facts: Facts) -> dict[str, Finding]:
    return {found.topic: found for found in diagnose(facts)}


def test_a_plain_cpu_machine_is_well() -> None:
    findings = diagnose(_facts())
    assert {found.state for found in findings} == {"ok", "note"}
    assert "no GPU found: a local CPU run" in [found.text for found in findings]
    refuse_problems(findings)
    assert to_text(findings).endswith("this machine can train: 0 problem(s), 0 warning(s)")


def test_a_gpu_that_torch_cannot_use_is_a_problem() -> None:
    bad = _bad(_facts(GPU_REPORT, probes=_probes(TORCH)))
    assert bad["cuda"].state == "problem"
    assert "is a CPU build" in bad["cuda"].text
    old = {**CUDA_TORCH, "gpus": [], "device": "cpu", "cuda_error": "driver is too old"}
    bad = _bad(_facts(GPU_REPORT, probes=_probes(old)))
    assert bad["cuda"].state == "problem"
    assert "driver is too old" in bad["cuda"].text
    with pytest.raises(EnvironmentProblem, match="cannot train: cuda"):
        refuse_problems([bad["cuda"]])


def test_a_broken_driver_is_a_problem_and_missing_bindings_a_warning() -> None:
    assert _bad(_facts(GpuReport(problem="the NVIDIA driver is broken: x")))["gpu"].state == (
        "problem"
    )
    missing = GpuReport(problem="the package nvidia-ml-py is not installed: GPUs cannot be seen")
    assert _bad(_facts(missing))["gpu"].state == "warning"


BARE = Tools(None, None, None, None)


def test_cpu_offload_needs_nothing_to_compile() -> None:
    for facts in (_facts(tools=BARE), _facts(GPU_REPORT, tools=BARE)):
        found = _by_topic(facts)["CPU offload"]
        assert (found.state, found.fix) == ("ok", "")
        assert "nothing to compile" in found.text


@pytest.mark.parametrize(
    ("op", "tools", "state", "text"),
    [
        (BUILT, BARE, "ok", "is built already"),
        (CAN_BE_BUILT, Tools("/usr/bin/c++", "/usr/bin/ninja", None, None), "ok", "first use"),
        (CAN_BE_BUILT, Tools(None, "/usr/bin/ninja", None, None), "warning", "no C++ compiler"),
        (CAN_BE_BUILT, BARE, "warning", "no C++ compiler, no ninja"),
        (NO_OPS, BARE, "note", "gloo does its work"),
    ],
)
def test_what_deepspeed_loads_on_a_cpu(
    op: dict[str, bool], tools: Tools, state: str, text: str
) -> None:
    deepspeed = _deepspeed({"deepspeed_shm_comm": op, "async_io": NO_OPS})
    found = _by_topic(_facts(tools=tools, probes=_probes(TORCH, deepspeed=deepspeed)))["CPU ranks"]
    assert (found.state, bool(found.fix)) == (state, state == "warning")
    assert text in found.text


def test_a_gpu_machine_is_not_asked_for_what_its_runs_do_not_compile() -> None:
    found = _by_topic(_facts(GPU_REPORT, tools=BARE))
    assert "CPU ranks" not in found
    assert {topic for topic, each in found.items() if each.state in ("warning", "problem")} == set()


@pytest.mark.parametrize(
    ("nvcc", "op", "state", "text", "fix"),
    [
        (None, CAN_BE_BUILT, "note", "no nvcc", "install the CUDA 12.8 toolkit"),
        ("11.8", CAN_BE_BUILT, "note", "nvcc is 11.8, torch is built for CUDA 12.8", "CUDA 12.8"),
        ("12.6", NO_OPS, "note", "not possible here: no libaio headers", "libaio-dev"),
        (None, NO_OPS, "note", "no nvcc, no libaio headers", "CUDA_HOME to it; apt-get install"),
        ("12.6", CAN_BE_BUILT, "ok", "is compiled at first use", ""),
        (None, BUILT, "ok", "is built already", ""),
    ],
)
def test_nvme_offload_says_what_it_lacks(
    nvcc: str | None, op: dict[str, bool], state: str, text: str, fix: str
) -> None:
    tools = Tools("/usr/bin/c++", "/usr/bin/ninja", nvcc, None)
    deepspeed = _deepspeed({"async_io": op}, "cuda")
    facts = _facts(GPU_REPORT, tools=tools, probes=_probes(CUDA_TORCH, deepspeed=deepspeed))
    found = _by_topic(facts)["NVMe offload"]
    assert found.state == state
    assert text in found.text
    assert fix in found.fix
    assert bool(found.fix) == bool(fix)


def test_a_part_compiled_by_a_former_run_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch puts it right under TORCH_EXTENSIONS_DIR, which the image sets."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert not is_compiled("deepspeed_shm_comm")
    folder = Path(cpp_extension._get_build_directory("deepspeed_shm_comm", verbose=False))
    (folder / "deepspeed_shm_comm.so").touch()
    assert is_compiled("deepspeed_shm_comm")


def test_the_screen_sums_up_packages_as_tested_and_keeps_those_that_differ() -> None:
    same = tuple(PackageState(name, "1.2.3", ">=1", "1.2.0") for name in ("aa", "bb", "cc"))
    newer = PackageState("bab", "2.0.0", ">=1", "1.2.0")
    findings = diagnose(_facts(packages=(same[0], newer, *same[1:])))
    lines = to_text(findings).splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["ok", "packages", "3"],
        ["warning", "bab", "2.0.0,"],
    ]
    assert not any(line.split()[1] in {"aa", "bb", "cc"} for line in lines)
    assert {"aa", "bb", "cc", "bab"} <= {found.topic for found in findings}


def test_what_the_host_offers_is_said_once() -> None:
    text = to_text(diagnose(_facts()))
    for value in ("100.0 GiB", "60.0 of 64.0 GiB", "60.0", "32.00 GiB", "the machine's cores"):
        assert text.count(value) == 1


def test_no_line_but_a_fix_is_wider_than_a_terminal() -> None:
    long = Finding("topic", "note", "word " * 60, "pip install " + "name " * 60)
    *lines, fix, _ = to_text([long]).splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(" ".join(lines).split()) == "note topic " + long.text.strip()
    assert fix.strip() == f"fix: {long.fix}".strip()


def test_whether_the_hub_is_asked_is_said_plainly() -> None:
    def said(*offline: str) -> str:
        hub = Hub(Path("/cache"), True, 50.0, offline, None)
        return _by_topic(_facts(hub=hub))["hub"].text

    assert "HF_HUB_OFFLINE=1 forbids" in said()
    assert said("HF_HUB_OFFLINE").startswith("HF_HUB_OFFLINE set: nothing is downloaded")
    assert "no dataset is downloaded" in said("HF_DATASETS_OFFLINE")


def test_a_broken_torch_is_a_problem_and_broken_extras_are_warnings() -> None:
    crashed = Probed("broken", error="crashed: SIGSEGV")
    bad = _bad(_facts(probes=_probes(TORCH, torch=crashed)))
    assert bad["torch works"].state == "problem"
    assert "SIGSEGV" in bad["torch works"].text
    extras = {"bitsandbytes": crashed, "deepspeed": crashed, "flash_attn": crashed}
    bad = _bad(_facts(probes=_probes(TORCH, **extras)))
    assert {name: found.state for name, found in bad.items()} == {
        "flash-attn": "warning",
        "4-bit weights": "warning",
        "ZeRO": "warning",
    }
    assert all(found.fix for found in bad.values())


def test_linux_only_libraries_are_not_missed_on_a_mac() -> None:
    absent = {"bitsandbytes": Probed("absent"), "deepspeed": Probed("absent")}
    mac = dataclasses.replace(HOST, system="Darwin", shared_memory_gib=None)
    assert _bad(_facts(host=mac, probes=_probes(TORCH, **absent))) == {}
    assert set(_bad(_facts(probes=_probes(TORCH, **absent)))) == {"4-bit weights", "ZeRO"}


@pytest.mark.parametrize(
    ("changes", "topic", "state"),
    [
        ({"disk_free_gib": 0.5}, "disk", "problem"),
        ({"disk_free_gib": 5.0}, "disk", "warning"),
        ({"memory_available_gib": 1.0}, "memory", "problem"),
        ({"memory_available_gib": 3.0}, "memory", "warning"),
        ({"shared_memory_gib": 0.0625}, "/dev/shm", "warning"),
    ],
)
def test_too_little_room_is_said(changes: dict[str, float], topic: str, state: str) -> None:
    bad = _bad(_facts(host=dataclasses.replace(HOST, **changes)))  # type: ignore[arg-type]
    assert {name: found.state for name, found in bad.items()} == {topic: state}


def test_versions_are_held_against_requirements_and_pins() -> None:
    pins = parse_pins("# all\ntorch==2.13.0 ; sys_platform == 'linux'\nrich==15.0.0\nabc>=1\n")
    assert pins == {"torch": "2.13.0", "rich": "15.0.0"}
    requirements = ["torch>=2.11", "rich>=13.9", 'wandb>=0.20; extra == "track"', "peft>=0.18"]
    versions = {"torch": "2.13.1+cu128", "rich": "14.2.0", "peft": "0.17.0"}
    states = to_states(requirements, pins, versions.get)
    assert [state.name for state in states] == ["peft", "rich", "torch"]
    bad = _bad(_facts(packages=tuple(states)))
    assert {name: found.state for name, found in bad.items()} == {
        "peft": "problem",
        "rich": "warning",
    }
    assert "14.2.0, tested with 15.0.0" in bad["rich"].text
    assert bad["peft"].fix == "pip install 'peft>=0.18'"
    optional = to_states(["deepspeed>=0.18"], {}, lambda _: None)
    assert _bad(_facts(packages=tuple(optional)))["deepspeed"].state == "warning"


def test_the_token_is_seen_and_never_shown(tmp_path: Path) -> None:
    hub = find_hub({"HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "1"}, tmp_path)
    assert (hub.token_from, hub.offline) == ("HF_TOKEN", ("HF_HUB_OFFLINE",))
    assert hub.cache == tmp_path / ".cache" / "huggingface" / "hub"
    assert "hf_secret" not in to_text(diagnose(_facts(hub=hub))) + repr(hub)
    (tmp_path / "token").write_text("hf_secret")
    from_file = find_hub({"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}, tmp_path)
    assert from_file.token_from == str(tmp_path / "token")
    assert from_file.offline == ()
    assert find_hub({}, tmp_path / "none").token_from is None


# Stands in for the probing process: prints among other things, and dies of the second library.
_DYING = """
import json, os, sys
for name in sys.argv[1:]:
    print("noise of a library")
    print("probe: " + json.dumps({"probe": name, "state": "began"}), flush=True)
    if name == "b":
        os.kill(os.getpid(), 11)
    if name == "c":
        sys.exit("no such thing")
    print("probe: " + json.dumps({"probe": name, "state": "found", "found": {"n": name}}))
"""


def test_a_library_that_crashes_costs_its_own_answer_only() -> None:
    results = probe_libraries(["a", "b", "c", "d"], [sys.executable, "-c", _DYING])
    assert results == {
        "a": Probed("found", {"n": "a"}),
        "b": Probed("broken", error="crashed: SIGSEGV"),
        "c": Probed("broken", error="no such thing"),
        "d": Probed("found", {"n": "d"}),
    }


def test_a_library_that_hangs_is_given_up() -> None:
    hanging = [sys.executable, "-c", "import signal; signal.pause()"]
    results = probe_libraries(["a", "b"], hanging, limit_seconds=0.5)
    assert results["a"].error.startswith("no answer within")
    assert results["b"].error.startswith("not tried")


def test_what_torch_says_of_this_machine() -> None:
    found = probe_torch()
    assert found["computes"]
    assert set(found) == set(TORCH)
    assert json.loads(json.dumps(found)) == found
    assert list(PROBES) == ["torch", "bitsandbytes", "deepspeed", "flash_attn"]


def test_the_command_prints_findings_and_its_exit_code_is_the_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = Probed("found", TORCH)
    monkeypatch.setattr(facts_module, "probe_libraries", lambda: _probes(TORCH, torch=torch))
    monkeypatch.setattr(facts_module, "read_gpus", lambda _: GpuReport())
    monkeypatch.setattr(facts_module, "read_host", lambda _: HOST)
    monkeypatch.setattr(facts_module, "read_packages", list)
    good = CliRunner().invoke(rankzero, ["doctor", "--json"])
    assert good.exit_code == 0
    assert {"topic", "state", "text", "fix", "group"} == set(json.loads(good.stdout)[0])
    full = dataclasses.replace(HOST, disk_free_gib=0.1)
    monkeypatch.setattr(facts_module, "read_host", lambda _: full)
    bad = CliRunner().invoke(rankzero, ["doctor"])
    assert bad.exit_code == 3
    assert "problem  disk" in bad.stdout
    assert "error: this machine cannot train: disk" in bad.stderr


def _loaded_by(*arguments: str) -> tuple[set[str], str]:
    command = [sys.executable, "-X", "importtime", "-m", "launcher", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}, ended.stdout


def test_profiles_shows_all_marks_one_and_loads_nothing_heavy() -> None:
    loaded, printed = _loaded_by("profiles")
    assert "rich" in loaded
    assert loaded.isdisjoint(HEAVY)
    for name in ("cpu", "single-24gb", "multi-node-h100"):
        assert name in printed
    assert sum(line.startswith("*  ") for line in printed.splitlines()) <= 1
    assert "auto takes what this machine has:" in printed


def test_profiles_as_json() -> None:
    printed = CliRunner().invoke(rankzero, ["profiles", "--json"])
    table = json.loads(printed.stdout)
    assert len(table["profiles"]) == 8
    assert table["detected"]["name"] == "detected"
    assert table["reasons"]
    assert table["matches"] is None or table["matches"] in {p["name"] for p in table["profiles"]}
