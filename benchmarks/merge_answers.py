"""Whether a merged model answers as its adapter does: greedy answers to 20 prompts, side by side.

    python benchmarks/merge_answers.py [RUN] [--prompts FILE]

The run's adapter is merged twice into a temporary folder, in the type of its base and in float32.
Each merged model, and the adapter beside its base, answers in float32, and in bfloat16 where this
machine computes in it. The prompts are the last 20 instructions of the file, after the run's system
prompt. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trainer.entry import quiet_libraries, run_entry  # noqa: E402

quiet_libraries()

import torch  # noqa: E402  (after the libraries are quiet)

from trainer.config_schema import Precision  # noqa: E402
from trainer.merge.job import MergeOptions  # noqa: E402
from trainer.merge.merging import merge_adapter  # noqa: E402
from trainer.precision import choose_device, probe_native_bf16  # noqa: E402
from trainer.run_directory import RunDirectory  # noqa: E402
from trainer.speaker import Speaker, load_speaker  # noqa: E402
from trainer.trained_model import (  # noqa: E402
    TrainedModel,
    read_adapter_config,
    read_run_system_prompt,
)

NUM_PROMPTS, MAX_NEW_TOKENS = 20, 60


def main(arguments: list[str]) -> None:
    """Print how many answers of each merged model are those of the adapter."""
    parser = argparse.ArgumentParser(description="greedy answers of merged models and adapter")
    parser.add_argument("run", nargs="?", type=Path, default=ROOT / "runs/quickstart")
    parser.add_argument("--prompts", type=Path, default=ROOT / "examples/data/medical_qa.jsonl")
    chosen = parser.parse_args(arguments)
    lines = chosen.prompts.read_text(encoding="utf-8").splitlines()[-NUM_PROMPTS:]
    prompts = [json.loads(line)["instruction"] for line in lines]
    adapter = RunDirectory(chosen.run).adapter
    base = str(read_adapter_config(adapter)["base_model_name_or_path"])
    system = read_run_system_prompt(str(chosen.run))
    precisions: list[Precision] = ["fp32", *(["bf16"] if probe_native_bf16("cpu") else [])]
    print("| merged into | computing in | answers equal |\n|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="rankzero-merge-") as folder:
        for dtype in (None, torch.float32):
            output = Path(folder, str(dtype))
            report = merge_adapter(adapter, output, MergeOptions(dtype=dtype))
            models = [TrainedModel("adapter", base, adapter), TrainedModel("merged", str(output))]
            for precision in precisions:
                speakers = [load_speaker(m, system, choose_device(), precision) for m in models]
                same = count_same(speakers, prompts)
                print(f"| {report.dtype} | {precision} | {same} of {len(prompts)} |")


def count_same(speakers: list[Speaker], prompts: list[str]) -> int:
    """Count the prompts that all answer in the same words, each in a chat of its own."""
    same = 0
    for prompt in prompts:
        for speaker in speakers:
            speaker.forget()
        same += len({speaker.answer(prompt, MAX_NEW_TOKENS).answer for speaker in speakers}) == 1
    return same


if __name__ == "__main__":
    sys.exit(run_entry(main))
