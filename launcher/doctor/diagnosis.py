"""What works on this machine and what does not: facts in, findings out. PURE."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.doctor.facts import Facts, Hub
from launcher.doctor.findings import Finding, Group, note, ok, problem, warning
from launcher.doctor.libraries import library_findings
from launcher.doctor.packages import PackageState
from launcher.host import HostFacts

# Libraries that only some runs need: QLoRA, ZeRO, GPU detection.
_OPTIONAL = {"bitsandbytes", "deepspeed", "nvidia-ml-py", "tensorboard"}
_LEAST_DISK_GIB, _LITTLE_DISK_GIB = 1, 10
_LEAST_MEMORY_GIB, _LITTLE_MEMORY_GIB = 1.5, 4
# Docker's default of 64 MB is too small for the data loader's worker processes and for NCCL.
_LITTLE_SHARED_GIB = 1.0
# What detection says of the host; here each has its own line, with a verdict.
_HOST_REASONS = ("host: ", "disk: ", "/dev/shm: ")


def diagnose(facts: Facts) -> list[Finding]:
    """Judge everything that was found, in the order a person would look."""
    return [
        ok("python", f"{facts.python} on {facts.platform}"),
        *_packages(facts),
        *_hardware(facts),
        *library_findings(facts),
        *_host(facts.host),
        _memlock(facts),
        *_hub(facts.hub),
    ]


def _packages(facts: Facts) -> Iterator[Finding]:
    if not facts.packages:
        yield warning(
            "packages",
            "this project is not installed as a package: required versions are unknown",
            "pip install -e .",
        )
    yield from (_package(state) for state in facts.packages)


def _package(state: PackageState) -> Finding:
    tested = f"tested with {state.pinned}" if state.pinned else "no tested version is recorded"
    install = f"pip install '{state.name}{state.required}'"
    if not state.is_accepted:
        what = f"{state.installed} is too old" if state.installed else "is not installed"
        judge = warning if state.name in _OPTIONAL else problem
        return judge(state.name, f"{what}: {state.required} is needed, {tested}", install)
    if state.pinned and not state.is_as_tested:
        fix = f"if something fails: pip install {state.name}=={state.pinned}"
        return warning(state.name, f"{state.installed}, {tested}", fix)
    group: Group = "packages as tested" if state.is_as_tested else ""
    return Finding(state.name, "ok", f"{state.installed} ({tested})", group=group)


def _hardware(facts: Facts) -> Iterator[Finding]:
    report = facts.report
    if report.problem and "nvidia-ml-py" in report.problem:
        yield warning("gpu", report.problem, "pip install nvidia-ml-py")
    elif report.problem:
        yield problem(
            "gpu",
            report.problem,
            "run nvidia-smi; install or restart the driver, or give the container its GPUs",
        )
    for gpu in facts.visible:
        memory = "the host's memory" if gpu.memory_gib is None else f"{gpu.memory_gib:.1f} GiB"
        free = "" if gpu.free_gib is None else f", {gpu.free_gib:.1f} free"
        capability = gpu.compute_capability
        kind = "" if capability is None else f", compute capability {capability}"
        yield ok("gpu", f"{gpu.index}: {gpu.name}, {memory}{free}{kind}")
    for reason in facts.detection.reasons:
        if reason != report.problem and not reason.startswith(_HOST_REASONS):
            yield ok("profile", reason)
    yield from _cuda(facts)


def _cuda(facts: Facts) -> Iterator[Finding]:
    """Compare what the driver shows with what torch gets."""
    torch = facts.probes["torch"]
    if torch.state != "found":
        return
    built, got, seen = torch.found["built_for_cuda"], torch.found["gpus"], facts.visible
    if not seen:
        yield ok("cuda", f"torch is built for CUDA {built}" if built else "a CPU build of torch")
        return
    if not built:
        yield problem(
            "cuda",
            f"{len(seen)} GPU(s) here, but torch {torch.found['version']} is a CPU build",
            "install torch for CUDA: see https://pytorch.org/get-started/locally",
        )
    elif len(got) != len(seen):
        yield problem(
            "cuda",
            f"the driver shows {len(seen)} usable GPU(s), torch gets {len(got)}: "
            f"{torch.found['cuda_error'] or 'no reason given'}",
            f"compare CUDA_VISIBLE_DEVICES, and the driver ({facts.report.driver}, CUDA "
            f"{facts.report.cuda}) with torch's CUDA {built}",
        )
    else:
        yield ok("cuda", f"torch gets all {len(got)}; CUDA {built}, driver for {facts.report.cuda}")
    if len(got) > 1 and not torch.found["nccl"]:
        yield problem("nccl", "torch has no NCCL: GPUs cannot work together", "reinstall torch")


def _host(host: HostFacts) -> Iterator[Finding]:
    text = f"{host.disk_free_gib:.1f} GiB free at {host.disk_path}"
    free_disk = "free space there, or choose another output_dir"
    if host.disk_free_gib < _LEAST_DISK_GIB:
        yield problem("disk", text, free_disk)
    elif host.disk_free_gib < _LITTLE_DISK_GIB:
        yield warning("disk", text, free_disk)
    else:
        yield ok("disk", text)
    yield ok("cores", f"{host.cpu_cores:g} ({host.cores_source})")
    text = (
        f"{host.memory_available_gib:.1f} of {host.memory_gib:.1f} GiB free ({host.memory_source})"
    )
    if host.memory_available_gib < _LEAST_MEMORY_GIB:
        yield problem("memory", text, "end other programs, or raise the container's limit")
    elif host.memory_available_gib < _LITTLE_MEMORY_GIB:
        yield warning("memory", text, "end other programs, or raise the container's limit")
    else:
        yield ok("memory", text)
    if host.shared_memory_gib is not None:
        text = f"{host.shared_memory_gib:.2f} GiB"
        if host.shared_memory_gib < _LITTLE_SHARED_GIB:
            fix = "docker run --shm-size=8g, or an emptyDir with medium: Memory at /dev/shm"
            yield warning("/dev/shm", f"{text}: too small for several ranks or workers", fix)
        else:
            yield ok("/dev/shm", text)


def _memlock(facts: Facts) -> Finding:
    if facts.memlock_bytes is None:
        return ok("memlock", "unlimited")
    text = f"limited to {facts.memlock_bytes / 2**20:.0f} MiB"
    if len(facts.visible) < 2:
        return note("memlock", f"{text}; several nodes on InfiniBand or EFA need more")
    return warning(
        "memlock",
        f"{text}: InfiniBand and EFA cannot register their buffers",
        "ulimit -l unlimited, or docker run --ulimit memlock=-1",
    )


def _hub(hub: Hub) -> Iterator[Finding]:
    text = f"{hub.cache}, {hub.free_gib:.1f} GiB free"
    if hub.is_writable:
        yield ok("hub cache", text)
    else:
        yield warning("hub cache", f"{text}: not writable", "set HF_HOME to a writable folder")
    if hub.offline:
        yield ok("hub", f"{', '.join(hub.offline)} set: {_what_offline_means(hub)}")
    else:
        yield ok("hub", "Hub ids are downloaded; HF_HUB_OFFLINE=1 forbids it")
    if hub.token_from:
        yield ok("hub token", f"present ({hub.token_from})")
    else:
        yield note("hub token", "none; gated models need one (HF_TOKEN)")


def _what_offline_means(hub: Hub) -> str:
    # datasets has a switch of its own; the others hold for everything.
    what = "no dataset" if hub.offline == ("HF_DATASETS_OFFLINE",) else "nothing"
    return f"{what} is downloaded; local folders and the cache are used"
