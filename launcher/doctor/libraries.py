"""What the heavy libraries can do here, judged from their probes. PURE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from launcher.doctor.facts import Facts, Tools
from launcher.doctor.findings import Finding, note, ok, problem, warning
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
        yield ok("precision", f"{found['precision']}: {found['precision_reason']}")


def _flash_attention(flash: Probed, *, on_gpu: bool) -> Finding:
    topic = "flash-attn"
    if flash.state == "found":
        return ok(topic, flash.found["version"])
    if flash.state == "broken":
        return warning(topic, flash.error, "its binary must fit torch's: pip install flash-attn")
    why = "" if on_gpu else " (flash-attn runs on GPUs only)"
    return note(topic, f"not installed; torch's own attention is used{why}")


def _bitsandbytes(facts: Facts) -> Finding:
    library, topic = facts.probes["bitsandbytes"], "4-bit weights"
    fix = "pip install --force-reinstall bitsandbytes"
    if library.state == "absent" and facts.host.system != "Linux":
        return note(topic, f"not on {facts.host.system}: installed on Linux only")
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
        yield note("ZeRO", f"not on {facts.host.system}: DeepSpeed is installed on Linux only")
        return
    if library.state == "absent":
        yield warning("ZeRO", "DeepSpeed is not installed", "pip install deepspeed")
        return
    if library.state == "broken":
        fix = "pip install --force-reinstall deepspeed"
        yield warning("ZeRO", f"DeepSpeed: {library.error}", fix)
        return
    yield ok("ZeRO", f"DeepSpeed on {library.found['accelerator']}")
    yield from _compiled_parts(library.found["ops"], facts, on_gpu=on_gpu)


def _compiled_parts(
    ops: Mapping[str, Mapping[str, bool]], facts: Facts, *, on_gpu: bool
) -> Iterator[Finding]:
    shared_memory = ops.get("deepspeed_shm_comm")  # not on a GPU, where NCCL does this
    if shared_memory is not None:
        yield _shared_memory(shared_memory, facts)
    yield ok("CPU offload", "torch's AdamW on the host; nothing to compile")
    yield _nvme(ops["async_io"], facts, on_gpu=on_gpu)


def _shared_memory(op: Mapping[str, bool], facts: Facts) -> Finding:
    """Judge what DeepSpeed loads before anything else on a CPU, even for a single rank."""
    topic, part = "CPU ranks", "DeepSpeed's shared-memory collective"
    if op["built"]:
        return ok(topic, f"{part} is built already")
    if not op["can_be_built"]:
        return note(topic, f"{part} is for Linux only; gloo does its work")
    lacks = _lacks_for_a_build(facts, on_gpu=False)
    if lacks:
        whats, fixes = zip(*lacks, strict=True)
        what = f"{part} cannot be compiled, so DeepSpeed does not start: {', '.join(whats)}"
        return warning(topic, what, "; ".join(fixes))
    return ok(topic, f"{part} is compiled at first use (once, 1-2 minutes)")


def _nvme(op: Mapping[str, bool], facts: Facts, *, on_gpu: bool) -> Finding:
    topic = "NVMe offload"
    if op["built"]:
        return ok(topic, "DeepSpeed's async_io is built already")
    lacks = _lacks_for_a_build(facts, on_gpu=on_gpu)
    # Without a compiler DeepSpeed cannot tell whether libaio is here.
    if not op["can_be_built"] and facts.tools.compiler:
        lacks.append(("no libaio headers", "apt-get install libaio-dev (or libaio-devel)"))
    if lacks:
        whats, fixes = zip(*lacks, strict=True)
        return note(topic, f"not possible here: {', '.join(whats)}", "; ".join(fixes))
    return ok(topic, "DeepSpeed's async_io is compiled at first use")


def _lacks_for_a_build(facts: Facts, *, on_gpu: bool) -> list[tuple[str, str]]:
    """List what is missing to compile a part of DeepSpeed while a run starts, each with its fix."""
    tools: Tools = facts.tools
    lacks = []
    if tools.compiler is None:
        lacks.append(("no C++ compiler", "apt-get install g++"))
    if tools.ninja is None:
        lacks.append(("no ninja", "pip install ninja"))
    if not on_gpu:
        return lacks
    needed = str(facts.probes["torch"].found["built_for_cuda"])
    fix = f"install the CUDA {needed} toolkit, or set CUDA_HOME to it"
    if tools.nvcc_version is None:
        lacks.append(("no nvcc", fix))
    elif tools.nvcc_version.partition(".")[0] != needed.partition(".")[0]:
        lacks.append((f"nvcc is {tools.nvcc_version}, torch is built for CUDA {needed}", fix))
    return lacks


def _numactl(facts: Facts) -> Finding:
    if facts.tools.numactl:
        return ok("numactl", facts.tools.numactl)
    return note("numactl", "not installed; only binding ranks to cores uses it")
