"""What the heavy libraries can do on this machine: tried, one after another, as lines of JSON.

`python -m trainer.probe torch bitsandbytes ...`. Each probe says that it begins before it begins,
so that whoever reads knows which one a crash belongs to.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Found = dict[str, Any]
_GIB = 2**30


def probe_torch() -> Found:
    """Compute a little on the device training would use."""
    import torch
    from torch import distributed

    from trainer.precision import choose_device, choose_precision, probe_native_bf16

    device = choose_device()
    native_bf16 = probe_native_bf16(device.type)
    choice = choose_precision("auto", device.type, native_bf16=native_bf16)
    square = torch.ones(64, 64, dtype=choice.dtype, device=device)
    return {
        "version": torch.__version__,
        "built_for_cuda": torch.version.cuda,
        "device": device.type,
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "cuda_error": _cuda_error(),
        "bf16": native_bf16,
        "precision": choice.precision,
        "precision_reason": choice.reason,
        "computes": bool((square @ square).sum().item() == 64.0**3),
        "threads": torch.get_num_threads(),
        "nccl": distributed.is_available() and distributed.is_nccl_available(),
        "gloo": distributed.is_available() and distributed.is_gloo_available(),
    }


def _gpu(index: int) -> Found:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_gib": properties.total_memory / _GIB,
        "compute_capability": f"{properties.major}.{properties.minor}",
    }


def _cuda_error() -> str | None:
    """Return why CUDA cannot be used, in torch's words; None when it can."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as error:
        return str(error).splitlines()[0]
    return None


def probe_bitsandbytes() -> Found:
    """Run a 4-bit layer forward and backward on the device training would use."""
    import bitsandbytes
    import torch
    from bitsandbytes.nn import Linear4bit

    from trainer.precision import choose_device

    device = choose_device()
    layer = Linear4bit(
        64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4", quant_storage=torch.uint8
    ).to(device)
    inputs = torch.ones(2, 64, device=device, requires_grad=True)
    layer(inputs).sum().backward()
    works = inputs.grad is not None and bool(torch.isfinite(inputs.grad).all())
    return {"version": bitsandbytes.__version__, "nf4": works}


def probe_deepspeed() -> Found:
    """Import DeepSpeed and see which of its compiled parts are there or can be made."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import accelerator_name, installed_ops

    accelerator = get_accelerator()
    device = accelerator.device_name()
    builders = {"async_io": "AsyncIOBuilder"}
    if device == "cpu":  # ranks on GPUs meet through NCCL
        builders["deepspeed_shm_comm"] = "ShareMemCommBuilder"
    ops = {}
    for name, builder_name in builders.items():
        builder = accelerator.create_op_builder(builder_name)
        # What the installation built is loaded on the kind of device it was built for, no other.
        is_installed = bool(installed_ops.get(name)) and accelerator_name == device
        ops[name] = {
            "built": is_installed or is_compiled(name),
            "can_be_built": builder is not None and bool(builder.is_compatible(verbose=False)),
        }
    return {"version": deepspeed.__version__, "accelerator": device, "ops": ops}


def is_compiled(name: str) -> bool:
    """Tell whether a former run compiled this part of DeepSpeed.

    Source: torch.utils.cpp_extension, which sorts by Python and CUDA in its own folder only, not in
    TORCH_EXTENSIONS_DIR.
    """
    import torch
    from torch.utils.cpp_extension import get_default_build_root

    library = Path(name, f"{name}.so")
    if "TORCH_EXTENSIONS_DIR" in os.environ:
        return Path(os.environ["TORCH_EXTENSIONS_DIR"], library).is_file()
    cuda = torch.version.cuda
    flavour = "cpu" if cuda is None else "cu" + cuda.replace(".", "")
    python = f"py{sys.version_info.major}{sys.version_info.minor}{sys.abiflags}"
    return Path(get_default_build_root(), f"{python}_{flavour}", library).is_file()


def probe_flash_attn() -> Found:
    """Import FlashAttention, whose binary must fit torch's."""
    import flash_attn

    return {"version": flash_attn.__version__}


PROBES: dict[str, Callable[[], Found]] = {
    "torch": probe_torch,
    "bitsandbytes": probe_bitsandbytes,
    "deepspeed": probe_deepspeed,
    "flash_attn": probe_flash_attn,
}


def main(names: list[str]) -> None:
    """Carry out the named probes; one that raises anything but ImportError ends the process."""
    for name in names:
        _say({"probe": name, "state": "began"})
        if importlib.util.find_spec(name) is None:
            _say({"probe": name, "state": "absent"})
            continue
        try:
            found = PROBES[name]()
        except ImportError as error:
            _say({"probe": name, "state": "broken", "error": str(error).splitlines()[0]})
        else:
            _say({"probe": name, "state": "found", "found": found})


def _say(line: Found) -> None:
    # The libraries print as well: an own mark tells our lines from theirs.
    print(f"probe: {json.dumps(line)}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
