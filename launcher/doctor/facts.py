"""Everything `rankzero doctor` looks at, collected; nothing is judged here."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.doctor.packages import PackageState, read_packages
from launcher.doctor.probing import Probed, probe_libraries
from launcher.gpus import GpuReport, SeenGpu, read_gpus, select_visible
from launcher.hardware import Detection, to_detection
from launcher.host import HostFacts, existing_part_of, read_host
from launcher.nvml import load_nvml
from launcher.profile_file import hardware_table

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True)
class Hub:
    """How this machine would reach the Hugging Face Hub. Never a token's value."""

    cache: Path
    is_writable: bool
    free_gib: float
    offline: tuple[str, ...]
    """Variables that keep the Hub away."""
    token_from: str | None
    """Where a token was found."""


@dataclass(frozen=True)
class Tools:
    """Programs some features need; paths, or None."""

    compiler: str | None
    ninja: str | None
    nvcc_version: str | None
    numactl: str | None


@dataclass(frozen=True)
class Facts:
    """One look at the machine."""

    python: str
    platform: str
    packages: tuple[PackageState, ...]
    probes: Mapping[str, Probed]
    report: GpuReport
    visible: tuple[SeenGpu, ...]
    detection: Detection
    host: HostFacts
    tools: Tools
    memlock_bytes: int | None
    """Largest amount of memory that may be locked; None when there is no limit."""
    hub: Hub


def collect(output: Path = Path()) -> Facts:
    """Look at this machine; takes as long as importing torch and DeepSpeed."""
    report, host = read_gpus(load_nvml()), read_host(output)
    return Facts(
        python=platform.python_version(),
        platform=platform.platform(terse=True),
        packages=tuple(read_packages()),
        probes=probe_libraries(),
        report=report,
        visible=select_visible(report.gpus, os.environ).gpus,
        detection=to_detection(report, host, os.environ, hardware_table()),
        host=host,
        tools=_find_tools(),
        memlock_bytes=_memlock_bytes(),
        hub=find_hub(os.environ, Path.home()),
    )


def find_hub(environment: Mapping[str, str], home: Path) -> Hub:
    """Find the Hub's cache, offline switches and whether there is a token.

    Source: huggingface_hub.constants (HF_HOME, HF_HUB_CACHE, HF_TOKEN_PATH).
    """
    cache_home = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    hf_home = Path(environment.get("HF_HOME") or cache_home / "huggingface")
    named = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    cache = Path(named or hf_home / "hub").expanduser()
    token_file = Path(environment.get("HF_TOKEN_PATH") or hf_home / "token").expanduser()
    sources = [name for name in _TOKENS if environment.get(name)]
    if token_file.is_file() and token_file.stat().st_size:
        sources.append(str(token_file))
    there = existing_part_of(cache)
    is_on = {"1", "ON", "YES", "TRUE"}
    return Hub(
        cache=cache,
        is_writable=os.access(there, os.W_OK),
        free_gib=shutil.disk_usage(there).free / 2**30,
        offline=tuple(name for name in _OFFLINE if environment.get(name, "").upper() in is_on),
        token_from=sources[0] if sources else None,
    )


def _find_tools() -> Tools:
    compiler = os.environ.get("CXX") or "c++"
    beside_python = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return Tools(
        compiler=shutil.which(compiler) or shutil.which("g++"),
        ninja=shutil.which("ninja", path=beside_python),
        nvcc_version=_nvcc_version(),
        numactl=shutil.which("numactl"),
    )


def _nvcc_version() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")
    if nvcc is None:
        return None
    try:
        ended = subprocess.run(
            [nvcc, "--version"], check=False, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"release (\d+\.\d+)", ended.stdout)
    return found.group(1) if found else None


def _memlock_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft
