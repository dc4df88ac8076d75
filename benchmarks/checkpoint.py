"""What a checkpoint costs training, beside `transformers.Trainer`'s own save, in one run.

    python benchmarks/checkpoint.py [--model FOLDER] [--every STEPS] [--saves N] [--rank R ...]

One training run for each LoRA rank saves in turns with this project's checkpointer and with
`Trainer._save_checkpoint`: same model, optimizer and disk (TMPDIR chooses it). Of the steps between
two saves the first half shows what a save does to those that follow it. What is not written by then
is waited for, which counts as theirs; the second half, undisturbed, is what they are compared with.
The first save of each kind is not counted. Ours is hashed and synced when it counts as saved;
Trainer neither hashes nor syncs. With fast steps, as on a GPU, make --every longer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trainer.entry import quiet_libraries, run_entry  # noqa: E402

quiet_libraries()

import torch  # noqa: E402  (after the libraries are quiet)
import transformers  # noqa: E402
from transformers import Trainer, TrainerCallback  # noqa: E402

from trainer.config import Config, load_config  # noqa: E402
from trainer.data.store import PreparedData  # noqa: E402
from trainer.main import Session  # noqa: E402
from trainer.run_directory import RunDirectory  # noqa: E402
from trainer.schedule import BatchPlan  # noqa: E402
from trainer.status import write_running  # noqa: E402
from trainer.training import RankZeroTrainer  # noqa: E402
from trainer.world import read_world  # noqa: E402

MODEL = ROOT / "models" / "smollm2-135m-instruct"
OURS, THEIRS = "this project", "transformers.Trainer"
RANKS, SAVES, EVERY = (16, 128), 10, 4
EXAMPLES, TOKENS, KEEP = 2, 64, 2
MIB = 1 << 20


@dataclass
class Save:
    """One save and the steps around it. Unit: seconds, unless the name says otherwise."""

    kind: str
    step: int
    blocked: float
    following: float = 0.0  # the steps right after it
    quiet: float = 0.0  # as many steps later, nothing being written
    on_disk: float | None = None  # hashed, synced and under its final name
    num_bytes: int = 0

    @property
    def slowdown(self) -> float:
        """What the steps after the save took more than they usually do."""
        return self.following - self.quiet


class Turns(TrainerCallback):  # type: ignore[misc]
    """Saves with one way and the other in turns, and times the steps between."""

    def __init__(self, trainer: Any, directory: RunDirectory, every: int) -> None:
        self.trainer, self.directory, self.every = trainer, directory, every
        self.saves: list[Save] = []
        self._ours = trainer._save_checkpoint
        trainer._save_checkpoint = self._save
        self._started = 0.0

    def _save(self, model: torch.nn.Module, trial: Any) -> None:
        kind = THEIRS if len(self.saves) % 2 else OURS
        step = self.trainer.state.global_step
        started = _now()
        if kind == OURS:
            self._ours(model, trial)
        else:
            Trainer._save_checkpoint(self.trainer, model, trial)
        save = Save(kind, step, _now() - started)
        if kind == THEIRS:
            folder = self.directory.path / f"checkpoint-{step}"
            save.num_bytes = sum(file.stat().st_size for file in folder.iterdir())
        self.saves.append(save)

    def on_step_begin(self, *arguments: Any, **named: Any) -> None:
        self._started = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Add the step to the half it belongs to; between the halves everything is written."""
        seconds = _now() - self._started
        if not self.saves:
            return
        save = self.saves[-1]
        since = state.global_step - save.step
        if since > self.every // 2:
            save.quiet += seconds
            return
        save.following += seconds
        if since == self.every // 2:
            waited = _now()
            self.trainer.checkpointer.finish()
            save.following += _now() - waited
            os.sync()
            if save.kind == OURS:
                last = json.loads(self.directory.last_save.read_text(encoding="utf-8"))
                save.on_disk, save.num_bytes = last["seconds"], last["bytes"]


class TimedSession(Session):
    """A run of this project whose saves take turns with Trainer's."""

    turns: Turns

    def build_trainer(self, data: PreparedData, plan: BatchPlan) -> RankZeroTrainer:
        trainer = super().build_trainer(data, plan)
        trainer.args.save_total_limit = KEEP  # ours is checkpoint.keep_last
        self.turns = Turns(trainer, self.directory, int(self.config.checkpoint.every_steps or 0))
        trainer.add_callback(self.turns)
        return trainer


def main(arguments: list[str]) -> None:
    """Print the machine as JSON, then a Markdown table."""
    parser = argparse.ArgumentParser(description="what a checkpoint costs training")
    parser.add_argument("--model", type=Path, default=MODEL, help="a model folder; `make demo`'s")
    parser.add_argument("--every", type=int, default=EVERY, help="steps from a save to the next")
    parser.add_argument("--saves", type=int, default=SAVES, help="counted saves of each kind")
    parser.add_argument("--rank", type=int, nargs="+", default=RANKS, help="LoRA ranks")
    chosen = parser.parse_args(arguments)
    if not (chosen.model / "config.json").is_file():
        parser.error(f"there is no model in {chosen.model}; `make demo` writes one")
    if chosen.every < 2 or chosen.every % 2:
        parser.error(f"--every {chosen.every} has no two equal halves; take an even number")
    if chosen.saves < 1:
        parser.error(f"--saves {chosen.saves} measures nothing; take 1 or more")
    print(json.dumps(_machine()))
    half = chosen.every // 2
    print(
        "| LoRA r | save by | MiB | training blocked, s | x | on disk after, s "
        f"| next {half} steps slower by, s | {half} steps, s |"
    )
    print("|---:|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for rank in chosen.rank:
        saves = _train(chosen.model, rank, every=chosen.every, num_saves=chosen.saves)
        _print_rows(rank, saves)


def _train(model: Path, rank: int, *, every: int, num_saves: int) -> list[Save]:
    """Train, and return the counted saves."""
    with tempfile.TemporaryDirectory() as name:
        config = _config(Path(name), model, rank, every=every, num_saves=num_saves)
        directory = RunDirectory(Path(config.output_dir))
        directory.claim()
        write_running(directory)
        session = TimedSession(config, read_world(), directory)
        session.console.quiet = True
        session.run()
    # The last one ends the run: no step follows it.
    return session.turns.saves[2:-1]


def _config(folder: Path, model: Path, rank: int, *, every: int, num_saves: int) -> Config:
    num_steps = every * (2 * (num_saves + 1) + 1)
    rows = folder / "rows.jsonl"
    # Cut into examples of equal length, so that steps take equal time.
    sentence = "The quick brown fox jumps over the lazy dog near the river bank. "
    rows.write_text(json.dumps({"text": sentence * 2000}) + "\n", encoding="utf-8")
    values = {
        "model": {"name": str(model)},
        "data": {"train": str(rows), "max_length": TOKENS, "cache_dir": str(folder / "cache")},
        "lora": {"r": rank, "alpha": rank, "target_modules": "all-linear"},
        "training": {
            "global_batch_size": EXAMPLES,
            "max_steps": num_steps,
            "logging_steps": num_steps,
        },
        "checkpoint": {"every_steps": every, "keep_last": KEEP},
        "output_dir": str(folder / "run"),
    }
    path = folder / "run.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return load_config(path, ())


def _print_rows(rank: int, saves: list[Save]) -> None:
    """Print a line for each kind: medians, ranges in brackets, ratio of the blocked times."""
    kinds = {kind: [save for save in saves if save.kind == kind] for kind in (OURS, THEIRS)}
    own = median(save.blocked for save in kinds[OURS])
    for kind, of_kind in kinds.items():
        blocked = [save.blocked for save in of_kind]
        on_disk = [save.on_disk for save in of_kind if save.on_disk is not None]
        print(
            f"| {rank} | {kind} | {median(save.num_bytes for save in of_kind) / MIB:.0f} "
            f"| {_spread(blocked)} | {median(blocked) / own:.1f} "
            f"| {_spread(on_disk) if on_disk else 'not synced'} "
            f"| {_spread([save.slowdown for save in of_kind])} "
            f"| {_spread([save.quiet for save in of_kind])} |",
            flush=True,
        )


def _spread(seconds: list[float]) -> str:
    return f"{median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"


def _machine() -> dict[str, Any]:
    accelerator = torch.accelerator.current_accelerator()
    return {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "device": "cpu" if accelerator is None else accelerator.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _now() -> float:
    """The time once the device has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(run_entry(main))
