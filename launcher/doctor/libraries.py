"""What the heavy libraries can do here, judged from their probes. PURE."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.doctor.facts import Facts, Tools
from launcher.doctor.findings import Finding, ok, problem, warning
from launcher.doctor.probing import Probed


def library_findings(facts: Facts) -> list[Finding]:
    """Judge torch, number formats, attention, 4-bit weights and DeepSpeed's compiled parts."""
    torch = facts.probes["torch"]
    on_gpu = torch.state == "found" and torch.found["device"] == "cuda"
    return [
        *_torch(torch),
        _flash_attention(facts.probes["flash_attn"], on_gpu=on_gpu),
        _bitsandbytes(facts),
        *_deepspeed(facts, on_gpu=on_gpu),
        _numactl(facts),
    ]


def _torch(torch: Probed) -> Iterator[Finding]:
    if torch.state == "absent":
        return  # said among the packages
    if torch.state == "broken":
        yield problem(
            "torch works", torch.error, "reinstall it: pip install --force-reinstall torch"
        )
        return
    found = torch.found
    if not found["computes"]:
        yield problem(
            "torch works",
            f"a sum of products on {found['device']} in {found['precision']} is wrong",
            "reinstall torch; if it stays wrong, the device is faulty",
        )
        return
    yield ok("torch works", f"computes on {found['device']}, {found['threads']} CPU threads")
    if found["device"] == "cuda" and not found["bf16"]:
        yield warning(
            "precision",
            f"{found['precision']} ({found['precision_reason']})",
            "use a GPU of compute capability 8.0 or newer for bf16",
        )
    else:
        yield ok("precision", f"{found['precision']} ({found['precision_reason']})")


def _flash_attention(flash: Probed, *, on_gpu: bool) -> Finding:
    topic = "flash-attn"
    if flash.state == "found":
        return ok(topic, flash.found["version"])
    if flash.state == "broken":
        return warning(topic, flash.error, "its binary must fit torch's: pip install flash-attn")
    where = "" if on_gpu else "; it has no CPU kernels"
    return ok(topic, f"not installed: torch's own attention is used{where}")


def _bitsandbytes(facts: Facts) -> Finding:
    library, topic = facts.probes["bitsandbytes"], "4-bit weights"
    fix = "pip install --force-reinstall bitsandbytes"
    if library.state == "absent" and facts.host.system != "Linux":
        return ok(topic, f"not on {facts.host.system}: installed on Linux only")
    if library.state == "absent":
        return warning(topic, "bitsandbytes is not installed: no QLoRA", "pip install bitsandbytes")
    if library.state == "broken":
        return warning(topic, f"bitsandbytes: {library.error}", fix)
    if not library.found["nf4"]:
        return warning(topic, "a 4-bit layer gives no finite gradient here", fix)
    return ok(topic, "an NF4 layer runs forward and backward")


def _deepspeed(facts: Facts, *, on_gpu: bool) -> Iterator[Finding]:
    library = facts.probes["deepspeed"]
    if library.state == "absent" and facts.host.system != "Linux":
        yield ok("ZeRO", f"not on {facts.host.system}: DeepSpeed is installed on Linux only")
        return
    if library.state == "absent":
        yield warning("ZeRO", "DeepSpeed is not installed", "pip install deepspeed")
        return
    if library.state == "broken":
        fix = "pip install --force-reinstall deepspeed"
        yield warning("ZeRO", f"DeepSpeed: {library.error}", fix)
        return
    yield ok("ZeRO", f"DeepSpeed on {library.found['accelerator']}")
    yield _cpu_adam(library.found["ops"]["cpu_adam"], facts, on_gpu=on_gpu)
    aio = library.found["ops"]["async_io"]
    if aio["built"] or aio["can_be_built"]:
        yield ok("NVMe offload", "libaio is here")
    elif on_gpu:
        fix = "apt-get install libaio-dev (or libaio-devel)"
        yield warning("NVMe offload", "not possible: libaio's library or headers are missing", fix)
    else:
        yield ok("NVMe offload", "not possible without libaio's headers; large GPU runs use it")


def _cpu_adam(op: dict[str, bool], facts: Facts, *, on_gpu: bool) -> Finding:
    topic = "CPU offload"
    if op["built"]:
        return ok(topic, "DeepSpeed's CPU Adam is compiled")
    missing = _missing_for_a_build(facts, on_gpu=on_gpu)
    if missing:
        what, fix = missing
        return warning(topic, f"DeepSpeed's CPU Adam cannot be compiled: {what}", fix)
    if not op["can_be_built"]:
        return warning(
            topic, "DeepSpeed says its CPU Adam does not fit this machine", "run ds_report"
        )
    return ok(topic, "DeepSpeed's CPU Adam is compiled at its first use (about two minutes)")


def _missing_for_a_build(facts: Facts, *, on_gpu: bool) -> tuple[str, str] | None:
    tools: Tools = facts.tools
    if tools.compiler is None:
        return "there is no C++ compiler", "apt-get install g++"
    if tools.ninja is None:
        return "ninja is not installed", "pip install ninja"
    if not on_gpu:
        return None
    needed = str(facts.probes["torch"].found["built_for_cuda"])
    if tools.nvcc_version is None:
        return "there is no nvcc", f"install the CUDA {needed} toolkit, or set CUDA_HOME"
    if tools.nvcc_version.partition(".")[0] != needed.partition(".")[0]:
        what = f"nvcc is {tools.nvcc_version}, torch is built for CUDA {needed}"
        return what, f"install the CUDA {needed} toolkit, or set CUDA_HOME to it"
    return None


def _numactl(facts: Facts) -> Finding:
    if facts.tools.numactl:
        return ok("numactl", facts.tools.numactl)
    return ok("numactl", "not installed; only binding ranks to cores uses it")
