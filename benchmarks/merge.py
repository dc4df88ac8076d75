"""What merging costs in memory and time: this project's, PEFT's, and copying the files.

    python benchmarks/merge.py [--size 0.5 1 3] [--folder FOLDER]

Each size is a random bfloat16 model of Llama's shape, written shard by shard, with a LoRA adapter
of rank 16 on all linear layers. Every way runs in a process of its own, one after another, and its
peak is the largest resident memory the kernel saw (VmHWM; elsewhere than on Linux, getrusage).
"imports" is what the libraries alone take. Ours includes its checks: base and result compared byte
by byte, logits of both, everything synced to disk. PEFT's has none: load, merge, save. The models
are deleted afterwards. TMPDIR chooses the disk.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trainer.entry import quiet_libraries, run_entry  # noqa: E402

quiet_libraries()

import torch  # noqa: E402  (after the libraries are quiet)
from peft import LoraConfig  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import LlamaConfig  # noqa: E402

from tests.tiny import make_tokenizer  # noqa: E402

GIB, BYTES_A_PARAMETER = 2**30, 2
RANK, VOCABULARY = 16, 32_000
# Hidden size, layers; 4 x hidden in the MLP would be OPT's, Llama has 8/3.
SHAPES = {"0.5": (1280, 22), "1": (2048, 19), "3": (3072, 26), "8": (4096, 40)}
MEASURED = """
import json, sys, time
sys.path.insert(0, {root!r})
from trainer.entry import quiet_libraries
quiet_libraries()
base, adapter, output = sys.argv[1:]
{imports}
started = time.perf_counter()
{work}
seconds = time.perf_counter() - started
from trainer.merge.report import peak_memory_bytes
print(json.dumps({{"peak": peak_memory_bytes(), "seconds": seconds}}))
"""
LIBRARIES = "import torch, transformers, peft\nfrom transformers import AutoModelForCausalLM"
WAYS = {
    "imports": (f"{LIBRARIES}\nfrom trainer.merge.merging import merge_adapter", "pass"),
    "this project": (
        "from pathlib import Path\nfrom trainer.merge.merging import merge_adapter",
        "report = merge_adapter(Path(adapter), Path(output))\nassert report.how == 'streamed'",
    ),
    "PEFT": (
        LIBRARIES,
        "model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)\n"
        "model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()\n"
        "model.save_pretrained(output)",
    ),
    "copy": ("import shutil, trainer.merge.merging", "shutil.copytree(base, output)"),
}


def main(arguments: list[str]) -> None:
    """Print the machine as JSON, then a Markdown table."""
    parser = argparse.ArgumentParser(description="memory and time of merging an adapter")
    parser.add_argument("--size", nargs="+", default=["0.5", "1", "3"], choices=list(SHAPES))
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    chosen = parser.parse_args(arguments)
    machine = {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
    }
    print(json.dumps(machine))
    print("| model, billion parameters | files, GiB | way | peak, GiB | seconds |")
    print("|---|---|---|---|---|")
    for size in chosen.size:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as temporary:
            measure(Path(temporary), size)


def measure(folder: Path, size: str) -> None:
    """Print the rows of one size."""
    base, adapter = folder / "base", folder / "adapter"
    num_parameters = write_base(base, *SHAPES[size])
    write_adapter(adapter, base)
    files = sum(file.stat().st_size for file in base.iterdir())
    for way, (imports, work) in WAYS.items():
        output = folder / "output"
        code = MEASURED.format(root=str(ROOT), imports=imports, work=work)
        command = [sys.executable, "-c", code, str(base), str(adapter), str(output)]
        os.sync()  # what the way before wrote is not this one's work
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(ended.stdout.splitlines()[-1])
        print(
            f"| {num_parameters / 1e9:.2f} | {files / GIB:.2f} | {way} "
            f"| {found['peak'] / GIB:.2f} | {found['seconds']:.1f} |",
            flush=True,
        )
        shutil.rmtree(output, ignore_errors=True)


def write_base(folder: Path, hidden: int, num_layers: int) -> int:
    """Write a random model, one file a layer. Returns the number of its parameters."""
    folder.mkdir(parents=True)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=math.ceil(hidden * 8 / 3 / 256) * 256,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 128,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    weight_map: dict[str, str] = {}
    total = 0
    for number in range(num_layers + 1):
        tensors = layer(config, number) if number < num_layers else ends(config)
        name = f"model-{number + 1:05}-of-{num_layers + 1:05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
        total += sum(tensor.numel() for tensor in tensors.values())
    index = {"metadata": {"total_size": total * BYTES_A_PARAMETER}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def layer(config: LlamaConfig, number: int) -> dict[str, torch.Tensor]:
    """Random weights of one decoder layer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes = {
        **{f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"},
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    tensors = {f"{name}.weight": random(*shape) for name, shape in shapes.items()}
    norm = torch.ones(hidden, dtype=torch.bfloat16)
    tensors |= {f"{name}_layernorm.weight": norm.clone() for name in ("input", "post_attention")}
    return {f"model.layers.{number}.{name}": tensor for name, tensor in tensors.items()}


def ends(config: LlamaConfig) -> dict[str, torch.Tensor]:
    """Random embedding and head."""
    return {
        "model.embed_tokens.weight": random(config.vocab_size, config.hidden_size),
        "model.norm.weight": torch.ones(config.hidden_size, dtype=torch.bfloat16),
        "lm_head.weight": random(config.vocab_size, config.hidden_size),
    }


def random(rows: int, columns: int) -> torch.Tensor:
    """Weights of a size that keeps activations near one."""
    return (torch.randn(rows, columns) / math.sqrt(columns)).to(torch.bfloat16)


def write_adapter(folder: Path, base: Path) -> None:
    """Write a random adapter on every linear layer but the head, as PEFT would."""
    config = LlamaConfig.from_pretrained(base)
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    LoraConfig(
        task_type="CAUSAL_LM",
        r=RANK,
        target_modules=list(names),
        base_model_name_or_path=str(base),
    ).save_pretrained(folder)
    tensors: dict[str, torch.Tensor] = {}
    for number in range(config.num_hidden_layers):
        for name, weight in layer(config, number).items():
            if weight.dim() == 2:
                key = f"base_model.model.{name.removesuffix('.weight')}"
                outputs, inputs = weight.shape
                tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, inputs) / math.sqrt(inputs)
                tensors[f"{key}.lora_B.weight"] = torch.randn(outputs, RANK) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    sys.exit(run_entry(main))
