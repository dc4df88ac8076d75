"""What a person watches: a progress bar on a terminal, a line per logging step elsewhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerControl, TrainerState, TrainingArguments

from trainer.callbacks.stateful import StatefulCallback

_INDENT = len("step     1/40  ")
"""Where the figures of a line begin, and those that follow on a second line."""


class ProgressCallback(StatefulCallback):
    """Loss, its running mean, rate, tokens/s, memory, time left. Ranks: add it on rank 0 only."""

    def __init__(self, console: Console, num_steps: int) -> None:
        self.console, self.num_steps = console, num_steps
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("training", total=num_steps, note="")
        self.loss_sum, self.last_logged = 0.0, 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.progress.update(self.task, completed=state.global_step)
        self.progress.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        if "loss" in logs:
            # A logged loss is the mean of the steps since the last line.
            self.loss_sum += logs["loss"] * (state.global_step - self.last_logged)
            self.last_logged = state.global_step
            mean = self.loss_sum / state.global_step
            self.progress.update(self.task, note=f"loss {logs['loss']:.3f} mean {mean:.3f}")
            line = training_line(state.global_step, self.num_steps, logs, mean)
            width = self.console.width if self.console.is_terminal else len(line)
            self.console.print(between_figures(line, width))
        for prefix, split in (("eval", "validation"), ("test", "test")):
            if f"{prefix}_loss" in logs:
                loss = logs[f"{prefix}_loss"]
                where = f"step {state.global_step:>5}/{self.num_steps}"
                self.console.print(f"{where}  [bold]{split} loss {loss:.4f}[/bold]")

    def state_dict(self) -> dict[str, Any]:
        return {"loss_sum": self.loss_sum, "last_logged": self.last_logged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss_sum, self.last_logged = state["loss_sum"], state["last_logged"]

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away, also after an error: its message begins on a line of its own."""
        self.progress.stop()


def training_line(step: int, num_steps: int, logs: dict[str, float], mean_loss: float) -> str:
    """One training line. Pure."""
    memory = logs.get("gpu_memory_gib", logs["host_memory_gib"])
    return (
        f"step {step:>5}/{num_steps}  epoch {logs['epoch']:.2f}  loss {logs['loss']:.4f}  "
        f"mean {mean_loss:.4f}  rate {logs['learning_rate']:.2e}  "
        f"grad {logs.get('grad_norm', float('nan')):.2f}  "
        f"{logs['tokens_per_second']:,.0f} tokens/s  {_arithmetic(logs)}  {memory:.1f} GiB"
    )


def between_figures(line: str, width: int) -> str:
    """Break a training line where a terminal is too narrow for it. PURE."""
    if len(line) <= width:
        return line
    end = line.rfind("  ", 0, width + 1)
    return line if end <= _INDENT else f"{line[:end]}\n{' ' * _INDENT}{line[end + 2 :]}"


def _arithmetic(logs: dict[str, float]) -> str:
    if "mfu" in logs:
        return f"MFU {100 * logs['mfu']:.1f} %"
    return f"{logs['tflops_per_second']:.3g} TFLOP/s"
