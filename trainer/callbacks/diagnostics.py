"""Advice while a run goes on: said once, kept in advice.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.diagnostics.advice import Advice
from trainer.diagnostics.data import DATA
from trainer.diagnostics.facts import RunFacts
from trainer.diagnostics.history import History
from trainer.diagnostics.learning import LEARNING
from trainer.lora import count_parameters
from trainer.run_directory import RunDirectory, append_line, read_lines

if TYPE_CHECKING:
    from trainer.data.store import PreparedSplit
    from trainer.training import RankZeroTrainer

_MOST_EXAMPLES = 2000  # of a split, that are read to compare their tokens


class DiagnosticsCallback(TrainerCallback):  # type: ignore[misc]
    """Looks at every logged line. Ranks: add it on rank 0 only, after metrics.jsonl."""

    def __init__(self, trainer: RankZeroTrainer, run: RunDirectory, console: Console) -> None:
        self.trainer, self.run, self.console = trainer, run, console
        self.facts = gather_facts(trainer, run)
        self.history = History()
        self.given: dict[str, Advice] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for line in read_lines(self.run.metrics):  # of earlier attempts
            self.history.add(line)
        self.given = {line["name"]: _advice(line) for line in read_lines(self.run.advice)}
        self._tell(state.global_step, (diagnose(self.facts) for diagnose in DATA))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        if "train_runtime" in logs:
            return  # what follows is measured on the best weights, not on the newest
        self.history.add({"step": state.global_step, **logs})
        found = (diagnose(self.history, self.facts) for diagnose in LEARNING)
        self._tell(state.global_step, found)

    def _tell(self, step: int, found: Iterator[Advice | None]) -> None:
        for advice in found:
            if advice is None or advice.name in self.given:
                continue
            self.given[advice.name] = advice
            append_line(self.run.advice, {"step": step, **vars(advice)})
            style = "yellow" if advice.severity == "warning" else "cyan"
            self.console.print(advice.text(), style=style, markup=False)


def gather_facts(trainer: RankZeroTrainer, run: RunDirectory) -> RunFacts:
    """Collect what is known before the first step."""
    config, plan, data = trainer.config, trainer.plan, trainer.data
    train = data.split("train")
    assert train is not None
    report = json.loads(run.data_report.read_text(encoding="utf-8"))
    validation = data.split("validation")
    return RunFacts(
        num_steps=plan.num_steps,
        warmup_steps=plan.warmup_steps,
        peak_rate=config.training.learning_rate,
        max_grad_norm=config.training.max_grad_norm,
        max_length=config.data.max_length,
        epochs=plan.epochs_at(plan.num_steps),
        num_examples=len(train),
        num_labels=int(train.num_labels.sum(dtype=np.int64)),
        num_duplicates=report["duplicates"]["inside_train"],
        num_truncated=report["splits"]["train"]["truncated"],
        validation_unseen=None if validation is None else unseen_share(train, validation),
        rank=config.lora.r if config.lora.enabled else None,
        num_trainable=count_parameters(trainer.model)[0],
    )


def unseen_share(train: PreparedSplit, validation: PreparedSplit) -> float:
    """Return the share of labels in one split whose token is no label in the other."""
    known, asked = _labels(train), _labels(validation)
    return float(1 - np.isin(asked, np.unique(known)).mean())


def _labels(split: PreparedSplit) -> np.ndarray[Any, np.dtype[np.int32]]:
    rows = np.linspace(0, len(split) - 1, min(len(split), _MOST_EXAMPLES)).astype(int).tolist()
    return np.concatenate([ids[mask] for ids, mask in map(split.row, rows)])


def _advice(line: dict[str, Any]) -> Advice:
    return Advice(**{name: value for name, value in line.items() if name != "step"})
