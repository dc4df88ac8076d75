"""Detection: what the driver, the host and the environment say becomes a profile with reasons."""
# ruff: noqa: N802, N815 - the names are NVML's

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.gpus import read_gpus
from launcher.hardware import Detection, closest_shipped, detect, resolve_profile
from launcher.host import (
    HostFacts,
    cpu_has_bf16,
    read_host,
)
from launcher.profile_file import load_profile
from trainer.cgroup import (
    cgroup_cpu_quota,
    cgroup_memory_free_bytes,
    cgroup_memory_limit_bytes,
)
from trainer.errors import ConfigError
from trainer.precision import probe_native_bf16

GIB = 2**30
HOST = HostFacts(
    system="Linux",
    machine="x86_64",
    macos_version="",
    memory_gib=200.0,
    memory_source="the machine's RAM",
    memory_available_gib=190.0,
    cpu_cores=32.0,
    cores_source="the machine's cores",
    bf16=False,
    shared_memory_gib=100.0,
    disk_free_gib=500.0,
    disk_path=Path("/data"),
)


class FakeError(Exception):
    """NVMLError: carries the code of the C library."""

    def __init__(self, value: int) -> None:
        self.value = value
        super().__init__(f"code {value}")


def _card(name: str, total_gib: float, **more: Any) -> SimpleNamespace:
    values = {"uuid": f"GPU-{name[-1]}", "cc": (8, 0), "reserved": 0.5, "used": 0.0, "mig": None}
    return SimpleNamespace(name=name, total=total_gib, **{**values, **more})


class FakeNvml:
    """The NVML calls that are used, answered from a list of cards."""

    NVMLError = FakeError
    nvmlMemory_v2 = 2

    def __init__(self, *cards: SimpleNamespace, fails_with: int | None = None) -> None:
        self.cards, self.fails_with, self.is_open = cards, fails_with, False

    def nvmlInit(self) -> None:
        if self.fails_with is not None:
            raise FakeError(self.fails_with)
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"570.1"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 12080

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> SimpleNamespace:
        return self.cards[index]

    def nvmlDeviceGetName(self, card: SimpleNamespace) -> str:
        return str(card.name)

    def nvmlDeviceGetUUID(self, card: SimpleNamespace) -> str:
        return str(card.uuid)

    def nvmlDeviceGetCudaComputeCapability(self, card: SimpleNamespace) -> tuple[int, int]:
        major, minor = card.cc
        return major, minor

    def nvmlDeviceGetMemoryInfo(self, card: SimpleNamespace, version: int | None = None) -> Any:
        if card.total is None or (version and card.reserved is None):
            raise FakeError(3)
        reserved = card.reserved or 0
        free = card.total - reserved - card.used
        return SimpleNamespace(
            total=int(card.total * GIB), reserved=int(reserved * GIB), free=int(free * GIB)
        )

    def nvmlDeviceGetMigMode(self, card: SimpleNamespace) -> list[int]:
        if card.mig is None:
            raise FakeError(3)
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, card: SimpleNamespace) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: SimpleNamespace, index: int) -> Any:
        if index >= len(card.mig):
            raise FakeError(6)
        return card.mig[index]


A100 = "NVIDIA A100-SXM4-40GB"


def _detect(*cards: SimpleNamespace, host: HostFacts = HOST, **environment: str) -> Detection:
    return detect(nvml=FakeNvml(*cards), host=host, environment=environment)


def _said(detection: Detection) -> str:
    return "\n".join(detection.reasons)


def test_several_known_cards_become_a_profile_with_the_tables_rates() -> None:
    cards = [_card(A100, 40, uuid=f"GPU-{n}") for n in range(4)]
    detection = _detect(*cards)
    profile = detection.profile
    assert (profile.device, profile.gpus_per_node, profile.nodes) == ("cuda", 4, 1)
    assert (profile.quantization, profile.allow_offload, profile.bf16) == ("none", True, True)
    assert profile.gpu is not None
    assert profile.gpu.memory_gib == pytest.approx(39.5)
    assert profile.gpu.memory_gib.source == "measured with NVML"
    assert profile.gpu.peak_bf16_tflops == 312
    assert profile.gpu.link == "nvlink"
    assert profile.host.memory_gib == 200
    assert f"4 x {A100}, driver 570.1, CUDA 12.8" in detection.reasons
    match = closest_shipped(profile)
    assert match is not None
    assert match.name == "multi-a100-40gb"


@pytest.mark.parametrize(
    ("count", "name", "total_gib", "capability", "expected"),
    [
        (8, "NVIDIA H100 80GB HBM3", 79.65, (9, 0), "multi-h100"),
        (8, "NVIDIA A100-SXM4-80GB", 80, (8, 0), "multi-a100-80gb"),
        (4, "NVIDIA A100-SXM4-80GB", 80, (8, 0), "multi-a100-40gb"),
        (1, A100, 40, (8, 0), "single-24gb"),
        (1, "NVIDIA H200", 140.4, (9, 0), "single-80gb"),
        (1, "NVIDIA L4", 22.5, (8, 9), "single-24gb"),
        (1, "Tesla T4", 15.5, (7, 5), None),
    ],
)
def test_the_closest_shipped_profile_is_one_the_machine_can_carry(
    count: int, name: str, total_gib: float, capability: tuple[int, int], expected: str | None
) -> None:
    cards = [_card(name, total_gib, cc=capability, uuid=f"GPU-{n}") for n in range(count)]
    match = closest_shipped(_detect(*cards).profile)
    assert (match.name if match else None) == expected


def test_one_small_card_trains_in_4_bits_and_an_unknown_one_has_no_rates() -> None:
    detection = _detect(_card("Exotic 9", 16, cc=(7, 5)))
    profile = detection.profile
    assert profile.quantization == "nf4"
    assert profile.gpu is not None
    assert (profile.gpu.peak_bf16_tflops, profile.gpu.link, profile.bf16) == (None, None, False)
    assert "Exotic 9) is not in the hardware table" in _said(detection)
    assert _detect(_card(A100, 40)).profile.quantization == "none"


def test_unlike_cards_count_as_the_smallest() -> None:
    detection = _detect(_card(A100, 40), _card("NVIDIA L4", 22.5, cc=(8, 9)))
    gpu = detection.profile.gpu
    assert gpu is not None
    assert gpu.memory_gib == pytest.approx(22.0)
    assert gpu.link == "pcie"
    assert "GPUs differ" in _said(detection)
    assert "the smallest counts (22.0 GiB)" in _said(detection)


def test_memory_that_others_hold_is_not_planned_with() -> None:
    detection = _detect(_card(A100, 40, used=10))
    assert detection.profile.gpu is not None
    assert detection.profile.gpu.memory_gib == pytest.approx(29.5)
    assert "is in use: 29.5 of 39.5 GiB are free" in _said(detection)
    idle = _detect(_card(A100, 40, used=0.2)).profile.gpu
    assert idle is not None
    assert idle.memory_gib == pytest.approx(39.5)


def test_an_old_driver_and_shared_memory_are_understood() -> None:
    old = _detect(_card(A100, 40, reserved=None)).profile.gpu
    assert old is not None
    assert old.memory_gib == 40
    shared = _detect(_card("NVIDIA GB10", None, cc=(12, 1)))
    assert shared.profile.gpu is not None
    assert shared.profile.gpu.memory_gib == 190
    assert shared.profile.gpu.compute_capability == pytest.approx(12.1)
    assert "shares the host's memory" in _said(shared)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("", 0),
        ("-1", 0),
        ("1", 1),
        ("2,0", 2),
        ("0,2,-1,1", 2),
        ("0,7,1", 1),
        ("0,0", 1),
        ("GPU-bb", 1),
        ("GPU-a,GPU-bb", 2),  # GPU-a is the beginning of one UUID only
        ("GPU-b", 0),  # of two
        ("nonsense", 0),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(value: str, count: int) -> None:
    cards = [_card(A100, 40, uuid=uuid) for uuid in ("GPU-aa", "GPU-bb", "GPU-bc")]
    detection = _detect(*cards, CUDA_VISIBLE_DEVICES=value)
    assert detection.profile.gpus_per_node == count
    assert f"CUDA_VISIBLE_DEVICES={value}: {count} of 3 GPUs" in _said(detection)
    assert detection.profile.device == ("cuda" if count else "cpu")
    if not count:
        assert "no GPU is visible: a local CPU run" in detection.reasons


def test_numbers_mean_different_cards_to_cuda_and_the_driver_when_cards_differ() -> None:
    cards = (_card(A100, 40), _card("NVIDIA L4", 22.5))
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in _said(_detect(*cards, CUDA_VISIBLE_DEVICES="1"))
    ordered = _detect(*cards, CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert "CUDA_DEVICE_ORDER" not in _said(ordered)


def test_a_process_gets_one_mig_slice() -> None:
    slices = [_card(f"{A100} MIG 1g.5gb", 4.75, uuid=f"MIG-{n}", reserved=0) for n in range(2)]
    cards = [_card(A100, 40, mig=slices), _card(A100, 40, uuid="GPU-b", mig=[])]
    detection = _detect(*cards)
    assert detection.profile.gpus_per_node == 1
    assert detection.profile.gpu is not None
    assert detection.profile.gpu.memory_gib == pytest.approx(4.75)
    assert "CUDA gives a process one slice" in _said(detection)
    assert "GPU 1" in _said(detection)
    assert "MIG mode without a slice" in _said(detection)
    named = _detect(*cards, CUDA_VISIBLE_DEVICES="MIG-1")
    assert named.profile.gpus_per_node == 1
    assert "CUDA gives a process" not in _said(named)


def test_without_a_driver_it_is_a_cpu_run_and_says_so() -> None:
    detection = detect(nvml=FakeNvml(fails_with=12), host=HOST, environment={})
    assert detection.profile.device == "cpu"
    assert detection.reasons[0] == "no GPU found: a local CPU run"
    match = closest_shipped(detection.profile)
    assert match is not None
    assert match.name == "cpu"


def test_a_broken_driver_is_not_taken_for_no_driver() -> None:
    detection = detect(nvml=FakeNvml(fails_with=18), host=HOST, environment={})
    assert detection.profile.device == "cpu"
    assert detection.reasons[0] == "the NVIDIA driver is broken: code 18"


def test_the_library_is_closed_again() -> None:
    nvml = FakeNvml(_card(A100, 40))
    assert len(read_gpus(nvml).gpus) == 1
    assert not nvml.is_open
    assert "nvidia-ml-py is not installed" in (read_gpus(None).problem or "")


def test_an_apple_computer_trains_on_mps() -> None:
    mac = dataclasses.replace(
        HOST, system="Darwin", machine="arm64", macos_version="14.5", memory_gib=36.0
    )
    profile = detect(nvml=FakeNvml(fails_with=12), host=mac, environment={}).profile
    assert (profile.device, profile.gpus_per_node, profile.bf16) == ("mps", 1, True)
    assert profile.gpu is not None
    assert profile.gpu.memory_gib == pytest.approx(24)
    old = dataclasses.replace(mac, macos_version="13.6")
    assert not detect(nvml=FakeNvml(fails_with=12), host=old, environment={}).profile.bf16


def test_profiles_are_resolved_by_name_or_file() -> None:
    detection = resolve_profile("multi-h100")
    assert detection.profile == load_profile("multi-h100")
    assert "8 x H100" in _said(detection)
    with pytest.raises(ConfigError, match="there is no profile"):
        resolve_profile("nonsense")


def test_auto_looks_at_this_machine(tmp_path: Path) -> None:
    detection = resolve_profile("auto", tmp_path / "runs" / "new")
    assert detection.profile.name == "detected"
    assert 0 < detection.profile.host.memory_gib < 100_000
    assert f"free at {tmp_path}" in _said(detection)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/cpuinfo is Linux's")
def test_bf16_is_judged_as_training_judges_it() -> None:
    assert read_host(Path()).bf16 == probe_native_bf16("cpu")


@pytest.mark.parametrize(
    ("flags", "has_bf16"),
    [
        ("fpu avx512f avx512_bf16", True),
        ("fpu amx_bf16 amx_tile", True),
        ("fpu avx2 avx512f", False),
    ],
)
def test_bf16_comes_from_the_processors_flags(flags: str, has_bf16: bool) -> None:
    assert cpu_has_bf16(f"processor\t: 0\nflags\t\t: {flags}\n") == has_bf16
    assert not cpu_has_bf16("Features\t: fp asimd bf16\n")  # torch does not use ARM's here


Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")

    return write_file


def test_limits_of_cgroup_v2_count_up_to_the_root(tmp_path: Path, write: Write) -> None:
    write("proc/self/cgroup", "0::/pod/container")
    write("sys/fs/cgroup/pod/container/memory.max", "max")
    write("sys/fs/cgroup/pod/memory.max", str(8 * GIB))
    write("sys/fs/cgroup/pod/container/cpu.max", "150000 100000")
    write("sys/fs/cgroup/pod/cpu.max", "max 100000")
    assert cgroup_memory_limit_bytes(tmp_path) == 8 * GIB
    assert cgroup_cpu_quota(tmp_path) == 1.5


def test_limits_are_found_where_the_container_sees_its_group_as_the_root(
    tmp_path: Path, write: Write
) -> None:
    write("proc/self/cgroup", "0::/kubepods/of/the/host")
    write("sys/fs/cgroup/memory.max", str(3 * GIB))
    assert cgroup_memory_limit_bytes(tmp_path) == 3 * GIB
    write("sys/fs/cgroup/memory.current", str(2 * GIB))
    write("sys/fs/cgroup/memory.stat", f"anon {GIB}\ninactive_file {GIB // 2}")
    facts = read_host(tmp_path, root=tmp_path)
    assert facts.memory_gib == 3
    assert cgroup_memory_free_bytes(tmp_path) == 1.5 * GIB
    assert facts.memory_available_gib <= 1.5
    assert facts.memory_source == "the cgroup's memory limit"


def test_limits_of_cgroup_v1(tmp_path: Path, write: Write) -> None:
    write("proc/self/cgroup", "9:cpu,cpuacct:/job\n4:memory:/job\n0::/")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", str(5 * GIB))
    write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "50000")
    write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000")
    assert cgroup_memory_limit_bytes(tmp_path) == 5 * GIB
    assert cgroup_cpu_quota(tmp_path) == 0.5


def test_without_limits_the_machine_is_what_there_is(tmp_path: Path, write: Write) -> None:
    assert cgroup_memory_limit_bytes(tmp_path) is None
    write("proc/self/cgroup", "4:memory:/\n1:cpu:/")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")
    write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert cgroup_memory_limit_bytes(tmp_path) is None
    assert cgroup_cpu_quota(tmp_path) is None
