"""An adapter of a card, and what its run left on disk: settings, data, figures.

Everything is read as it is found: a file that is missing leaves out what it would have said.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trainer.checkpoints.state import FILE_NAME as STATE
from trainer.model_card.data import Data, read_data
from trainer.run_directory import RunDirectory, read_lines
from trainer.trained_model import find_run, read_adapter_config

_LOSSES = {"eval_loss": "validation", "test_loss": "test"}
_STORED = {"none": "as the model stores them", "nf4": "4 bits (NF4)", "fp4": "4 bits (FP4)"}

Row = tuple[str, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter and its training; empty where nothing is known."""

    method: str
    shape: tuple[Row, ...]
    training: tuple[Row, ...] = ()
    data: Data | None = None
    losses: tuple[Row, ...] = ()
    """Split, loss before training, loss of these weights."""
    versions: dict[str, str] | None = None
    has_safety: bool = False
    """Its run measured the safety of answers."""


@dataclass(frozen=True)
class _Progress:
    """How far the run was with these weights."""

    steps: int
    tokens: int
    weights_step: int
    before: dict[str, float]
    after: dict[str, float]


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter and, when it lies in one, its run.

    Raises: ConfigError when adapter_config.json is not JSON.
    """
    description = read_adapter_config(folder)
    method, shape = _method(description), _shape(description)
    run = find_run(folder)
    if run is None:
        return Adapter(method, shape)
    config, contract = _read(run.resolved_config), _read(run.contract)
    progress = _known(lambda: _progress(folder.resolve(), run, config))
    plan, report = _read(run.plan), _read(run.data_report)
    return Adapter(
        method=method,
        shape=shape,
        training=_known(lambda: _training(config, contract, plan, progress)) or (),
        data=_known(lambda: read_data(report, config.get("data") or {})),
        losses=_losses(progress),
        versions=contract.get("versions"),
        has_safety=(run.path / "safety.jsonl").is_file(),
    )


def _known(read: Callable[[], T]) -> T | None:
    """Return what was read; a file of another version, or a damaged one, says nothing.

    A merge is never lost to its card.
    """
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _method(description: dict[str, Any]) -> str:
    kind = str(description.get("peft_type", "LORA"))
    if kind != "LORA":
        return kind
    rank_stabilized = "rsLoRA" if description.get("use_rslora") else "LoRA"
    return f"DoRA ({rank_stabilized})" if description.get("use_dora") else rank_stabilized


def _shape(description: dict[str, Any]) -> tuple[Row, ...]:
    return _rows(
        ("Method", _method(description)),
        ("Rank", description.get("r")),
        ("Alpha", description.get("lora_alpha")),
        ("Dropout", description.get("lora_dropout")),
        ("Adapted layers", _targets(description.get("target_modules"))),
        ("Layers with a rank of their own", len(description.get("rank_pattern") or ()) or None),
        ("Layers with an alpha of their own", len(description.get("alpha_pattern") or ()) or None),
        ("Biases trained", description.get("bias")),
        ("Trained in full", ", ".join(description.get("modules_to_save") or ())),
    )


def _targets(targets: list[str] | str | None) -> str | None:
    if not isinstance(targets, list):
        return targets
    kinds = sorted({name.rpartition(".")[2] for name in targets})
    several = len(kinds) < len(targets)
    return ", ".join(kinds) + (f" ({len(targets)} layers)" if several else "")


def _progress(folder: Path, run: RunDirectory, config: dict[str, Any]) -> _Progress | None:
    """Find which step these weights are of; best_model/ does not say."""
    if folder == run.adapter.resolve():
        summary = _read(run.summary)
        if not summary:
            return None
        takes_best = (config.get("evaluation") or {}).get("load_best", True)
        step = (summary.get("best_step") if takes_best else None) or summary["steps"]
        before, after = summary["before"], summary["after"]
        return _Progress(summary["steps"], summary["tokens"], step, before, after)
    state = _read(folder / STATE)
    if not state:
        return None
    before, after = (_logged_losses(run.metrics, step) for step in (0, state["step"]))
    return _Progress(state["step"], state["tokens"], state["step"], before, after)


def _logged_losses(metrics: Path, step: int) -> dict[str, float]:
    losses: dict[str, float] = {}
    for line in read_lines(metrics):
        if line.get("step") == step and "train_loss" in line:
            break  # what follows is measured on the best weights
        if line.get("step") == step:
            losses |= {_LOSSES[key]: line[key] for key in _LOSSES.keys() & line.keys()}
    return losses


def _training(
    config: dict[str, Any],
    contract: dict[str, Any],
    plan: dict[str, Any],
    progress: _Progress | None,
) -> tuple[Row, ...]:
    training, data = config.get("training") or {}, config.get("data") or {}
    size, examples = contract.get("global_batch_size"), contract.get("num_examples")
    steps = progress.steps if progress else None
    learned = {"assistant": "what the assistant says", "all": "every token"}
    rate = training.get("learning_rate")
    clipped = training.get("max_grad_norm")
    return _rows(
        ("Learned", learned.get(str(data.get("train_on")))),
        ("Longest example", _tokens(data.get("max_length"))),
        ("Learning rate", None if rate is None else f"{rate:g}, {training.get('scheduler')}"),
        ("Warm-up", f"{contract['warmup_steps']} steps" if contract.get("warmup_steps") else None),
        ("Optimizer", training.get("optimizer")),
        ("Weight decay", training.get("weight_decay")),
        ("Gradients clipped at norm", clipped or None),
        ("NEFTune noise", training.get("neftune_noise_alpha")),
        ("Examples per step", size),
        ("Steps", _of(steps, contract.get("num_steps"))),
        ("Examples seen", _epochs(steps, size, examples)),
        ("Tokens seen", None if progress is None else f"{progress.tokens:,}"),
        ("Weights of step", None if progress is None else progress.weights_step),
        ("Precision", _precision(training, plan)),
        ("Base weights while training", _stored(config.get("model") or {})),
        ("Hardware, as planned", _known(lambda: _hardware(plan))),
        ("Seed", config.get("seed")),
    )


def _losses(progress: _Progress | None) -> tuple[Row, ...]:
    if progress is None:
        return ()
    return tuple(
        (split, *(_loss(losses.get(split)) for losses in (progress.before, progress.after)))
        for split in _LOSSES.values()
        if split in progress.after
    )


def _loss(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def _precision(training: dict[str, Any], plan: dict[str, Any]) -> str | None:
    asked: str | None = training.get("precision")
    return asked if asked != "auto" else plan.get("precision")


def _stored(model: dict[str, Any]) -> str | None:
    kind = str(model.get("quantization"))
    text = _STORED.get(kind, "8 bits (LLM.int8)" if kind == "int8" else None)
    is_double = kind in ("nf4", "fp4") and model.get("double_quantization")
    return f"{text}, scales quantised too" if text and is_double else text


def _hardware(plan: dict[str, Any]) -> str | None:
    if not plan:
        return None
    processes = f"{plan['nodes']} node(s) with {plan['processes_per_node']} process(es)"
    return f"{plan['device']}, {processes}, {plan['strategy']}"


def _epochs(steps: int | None, size: int | None, examples: int | None) -> str | None:
    if not steps or not size or not examples:
        return None
    return f"{steps * size:,} ({steps * size / examples:.2f} epochs of {examples:,})"


def _of(done: int | None, planned: int | None) -> str | None:
    if done is None or planned is None:
        return None
    return f"{done:,}" if done == planned else f"{done:,} of {planned:,} planned"


def _tokens(count: int | None) -> str | None:
    return None if count is None else f"{count:,} tokens"


def _rows(*pairs: tuple[str, Any]) -> tuple[Row, ...]:
    """Keep what is known."""
    return tuple((label, _text(value)) for label, value in pairs if value not in (None, ""))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
