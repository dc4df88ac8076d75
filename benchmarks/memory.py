"""Predicted peak memory beside a simulated step, and beside the measured peak of real CPU runs.

    python benchmarks/memory.py simulated          the memory model against whole simulated steps
    python benchmarks/memory.py measured MODEL     against real runs of a small model on this CPU

Prints a Markdown table; docs/memory.md holds the last one. The simulated step builds every layer
and both kinds of state, where the memory model extrapolates from two layers and three lengths.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.entry import quiet_libraries

quiet_libraries()

from launcher.fit import to_job, to_machine  # noqa: E402  (after the libraries are quiet)
from launcher.hardware import detect  # noqa: E402
from launcher.memory import GIB, Machine, MemoryEstimate, estimate_memory  # noqa: E402
from launcher.plan_request import choose_basis  # noqa: E402
from launcher.strategy import Strategy, Zero  # noqa: E402
from trainer.config import Config, load_config, to_json  # noqa: E402
from trainer.loss import prepare_loss  # noqa: E402
from trainer.precision import DTYPES  # noqa: E402
from trainer.shapes import measure_facts  # noqa: E402
from trainer.simulate import materialize, simulate_training, simulation  # noqa: E402
from trainer.simulated_model import build_simulated, load_architecture  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
LORA: tuple[str, ...] = ("model.quantization=none",)
QLORA = ("model.quantization=nf4",)
INT8 = ("model.quantization=int8",)
DORA = (*LORA, "lora.use_dora=true")
FULL = (*LORA, "lora.enabled=false")
CHECKPOINTED = ("training.gradient_checkpointing=true",)
# Model, method, settings, tokens of a micro-batch. Lengths are not those the facts are fitted to.
SIMULATED: list[tuple[str, str, tuple[str, ...], int]] = [
    ("llama-3.2-1b", "LoRA", LORA, 3000),
    ("llama-3.2-1b", "full", FULL, 1536),
    ("llama-3.2-1b", "full", (*FULL, *CHECKPOINTED), 8192),
    ("phi-4-mini", "LoRA", (*LORA, *CHECKPOINTED), 6000),
    ("phi-4-mini", "QLoRA nf4", QLORA, 1536),
    ("mistral-7b-v0.1", "QLoRA nf4", QLORA, 2048),
    ("mistral-7b-v0.1", "QLoRA nf4", (*QLORA, *CHECKPOINTED), 8192),
    ("qwen2.5-7b", "LoRA int8", (*INT8, *CHECKPOINTED), 3000),
    ("qwen2.5-7b", "LoRA, fused AdamW", (*LORA, "training.optimizer=adamw_torch_fused"), 1536),
    ("llama-3.1-8b", "LoRA", LORA, 3000),
    ("llama-3.1-8b", "DoRA", (*DORA, *CHECKPOINTED), 3000),
    ("llama-3.1-8b", "full", (*FULL, *CHECKPOINTED), 3000),
    ("llama-2-13b", "QLoRA nf4", (*QLORA, *CHECKPOINTED), 6000),
    ("llama-2-13b", "full", (*FULL, *CHECKPOINTED), 1536),
    ("qwen3-30b-a3b", "LoRA", (*LORA, *CHECKPOINTED), 3000),
    ("llama-3.1-70b", "LoRA", (*LORA, *CHECKPOINTED), 3000),
    ("llama-3.1-70b", "QLoRA nf4", (*QLORA, *CHECKPOINTED), 1536),
]
# Method, settings, tokens of a micro-batch, on the small model.
MEASURED: list[tuple[str, tuple[str, ...], int]] = [
    ("LoRA", LORA, 512),
    ("LoRA", LORA, 1024),
    ("LoRA", (*LORA, *CHECKPOINTED), 2048),
    ("QLoRA nf4", QLORA, 512),
    ("full", FULL, 1024),
    ("full", (*FULL, *CHECKPOINTED), 1024),
]


@dataclass(frozen=True)
class Row:
    """One line of a table. Unit: GiB."""

    model: str
    method: str
    checkpointing: bool
    tokens: int
    predicted: float
    observed: float


def main(arguments: list[str]) -> None:
    """Print the table asked for."""
    match arguments:
        case ["simulated"]:
            print_table("simulated", map(compare_with_simulation, SIMULATED))
        case ["measured", model]:
            print_table("measured", measure_runs(Path(model)))
        case _:
            sys.exit(__doc__)


def print_table(observed: str, rows: Iterator[Row] | map[Row]) -> None:
    print(f"| model | method | checkpointing | tokens | predicted GiB | {observed} GiB | ratio |")
    print("|---|---|---|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row.model} | {row.method} | {'on' if row.checkpointing else 'off'} | {row.tokens} "
            f"| {row.predicted:.2f} | {row.observed:.2f} | {row.predicted / row.observed:.3f} |",
            flush=True,
        )


def compare_with_simulation(case: tuple[str, str, tuple[str, ...], int]) -> Row:
    """Predict from facts, and simulate the same step with all layers; CUDA's kernels, bf16."""
    name, method, settings, tokens = case
    config = _config(ROOT / "tests" / "model_configs" / name, settings)
    is_on = config.training.gradient_checkpointing is True
    facts = measure_facts(config, precision="bf16", device_type="cuda")
    machine = Machine(True, 1, 1, 0.0, 0.0, 0.0)
    job = to_job(config, facts, "bf16", tokens)
    predicted = estimate_memory(job, _plain(is_on), machine).tensors
    model = build_simulated(
        config,
        load_architecture(config),
        precision="bf16",
        casting="autocast",
        checkpointing=is_on,
    )
    loss_plan = prepare_loss(model, "cuda")
    with simulation("cuda") as tracker:
        materialize(model)
        observed = simulate_training(
            model,
            tracker,
            num_tokens=tokens,
            num_labels=tokens,
            autocast=DTYPES["bf16"],
            loss_plan=loss_plan,
            multi_tensor=config.training.optimizer == "adamw_torch",
        )
    return Row(name, method, is_on, tokens, predicted / GIB, observed / GIB)


def measure_runs(model: Path) -> Iterator[Row]:
    """Train a few steps for each case in a process of its own, and read its peak."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        sentence = "The quick brown fox jumps over the lazy dog near the river bank. "
        lines = [json.dumps({"text": sentence * 400}) for _ in range(24)]
        rows.write_text("\n".join(lines), encoding="utf-8")
        for number, (method, settings, tokens) in enumerate(MEASURED):
            output = Path(folder) / f"run-{number}"
            config = _config(model, settings, rows, output, tokens)
            estimate = _estimate_here(config, tokens)
            resolved = Path(folder) / f"{number}.json"
            resolved.write_text(to_json(config), encoding="utf-8")
            command = [sys.executable, "-m", "trainer", "--config", str(resolved)]
            yield Row(
                model.name,
                method,
                config.training.gradient_checkpointing is True,
                tokens,
                estimate.device / GIB,
                _peak_of(command) / GIB,
            )


def _estimate_here(config: Config, tokens: int) -> MemoryEstimate:
    profile = detect().profile
    basis = choose_basis(config, profile)
    facts = measure_facts(config, precision=basis.precision, device_type="cpu")
    job = to_job(config, facts, basis.precision, tokens)
    strategy = _plain(config.training.gradient_checkpointing is True)
    return estimate_memory(job, strategy, to_machine(profile, 1, 1))


def _peak_of(command: list[str]) -> int:
    """Run to the end and return the peak of resident memory. Unit: bytes."""
    pid = os.posix_spawn(command[0], command, {**os.environ, "PYTHONPATH": str(ROOT)})
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return usage.ru_maxrss * (1024 if sys.platform == "linux" else 1)


def _plain(checkpointing: bool) -> Strategy:
    return Strategy("one process", None, Zero(), checkpointing, 1.0)


def _config(
    model: Path,
    settings: tuple[str, ...],
    rows: Path = Path("rows.jsonl"),
    output: Path = Path("run"),
    tokens: int = 2048,
) -> Config:
    values: dict[str, Any] = {
        "model": {"name": str(model)},
        "data": {"train": str(rows), "max_length": tokens},
        "training": {
            "global_batch_size": 2,
            "max_steps": 2,
            "max_tokens_per_device": tokens,
            "logging_steps": 1,
        },
        "output_dir": str(output),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        path.write_text(json.dumps(values), encoding="utf-8")
        return load_config(path, settings)


if __name__ == "__main__":
    main(sys.argv[1:])
