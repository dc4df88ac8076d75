"""How long a command takes to answer, beside others, in one run: medians and ratios.

Usage: make bench, or python benchmarks/startup.py [CONFIG]. Rounds are interleaved, so that a busy
moment hits all. The first round warms the file cache and is not counted.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from launcher.cli import COMMANDS  # noqa: E402

ROUNDS = 5
CONFIG = ROOT / "examples" / "any-machine.yaml"
# Sizes of Mistral-7B-v0.3: what `plan` needs of a model is its config.json.
MODEL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32768,
    "tie_word_embeddings": False,
}
BASELINE = "python -c pass"


def main(arguments: Sequence[str]) -> None:
    """Print one line per command: median seconds and the ratio to the bare interpreter."""
    with tempfile.TemporaryDirectory() as name:
        commands, skipped = _commands(Path(name), Path(arguments[0]) if arguments else None)
        seconds: dict[str, list[float]] = {title: [] for title in commands}
        for round_number in range(ROUNDS + 1):
            for title, command in commands.items():
                taken = _time(command)
                if round_number:
                    seconds[title].append(taken)
    base = statistics.median(seconds[BASELINE])
    for title, times in seconds.items():
        median = statistics.median(times)
        print(f"{title:42} {median:7.3f} s  x {median / base:6.1f}")
    for title, reason in skipped.items():
        print(f"{title:42} skipped: {reason}")


def _commands(folder: Path, config: Path | None) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return what can be run here, and why the rest cannot."""
    ours = [sys.executable, "-m", "launcher"]
    commands = {
        BASELINE: [sys.executable, "-c", "pass"],
        "python -m launcher --help": [*ours, "--help"],
        "python -m launcher profiles": [*ours, "profiles"],
    }
    skipped = {}
    plan = "python -m launcher plan CONFIG"
    if "plan" in COMMANDS:
        options = ["--profile", "single-24gb"]
        if config is None:
            model = folder / "model"
            model.mkdir()
            (model / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
            config = CONFIG
            options += ["--set", f"model.name={model}"]
        commands[plan] = [*ours, "plan", str(config), *options]
    else:
        skipped[plan] = "this version has no `plan`"
    for title, words in (("trl --help", ["--help"]), ("accelerate launch -h", ["launch", "-h"])):
        name = title.split()[0]
        places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        program = shutil.which(name, path=places)
        if program:
            commands[title] = [program, *words]
        else:
            skipped[title] = f"{name} is not installed"
    return commands, skipped


def _time(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main(sys.argv[1:])
