"""What a run achieved: summary.json and the last lines on the screen."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from trainer.run_directory import RunDirectory, write_json


@dataclass(frozen=True)
class RunResults:
    """Losses are means over labelled tokens, by split."""

    before: dict[str, float]
    after: dict[str, float]
    steps: int
    examples: int
    tokens: int
    training_seconds: float  # without evaluations and checkpoints
    train_loss: float
    best_step: int | None
    stopped_early: bool

    def write(self, path: Path) -> None:
        """Write every field and the rates that follow from them."""
        write_json(path, dataclasses.asdict(self) | self._rates())

    def text(self, directory: RunDirectory) -> str:
        """The closing lines. Pure but for looking at which results exist."""
        rates = self._rates()
        lines = [
            f"trained {self.steps} steps in {self.training_seconds:.0f} s: "
            f"{rates['samples_per_second']:.2f} samples/s, "
            f"{rates['steps_per_second']:.3f} steps/s, "
            f"{rates['tokens_per_second']:,.0f} tokens/s, mean loss {self.train_loss:.4f}"
        ]
        if self.stopped_early:
            lines.append("stopped early: the validation loss no longer falls")
        for split, loss in self.after.items():
            before = self.before.get(split)
            lines.append(
                f"{split} loss {loss:.4f}"
                if before is None
                else f"{split} loss {before:.4f} before, {loss:.4f} after"
            )
        for name in ("adapter", "model"):
            folder = directory.path / name
            if folder.is_dir():
                lines.append(f"saved {name}: {folder}")
        return "\n".join(lines)

    def _rates(self) -> dict[str, float]:
        seconds = max(self.training_seconds, 1e-9)
        return {
            "samples_per_second": self.examples / seconds,
            "steps_per_second": self.steps / seconds,
            "tokens_per_second": self.tokens / seconds,
        }
