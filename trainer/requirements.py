"""The gate before a merge: figures the run was told to require, and what it measured.

The figures are those of the weights to be merged, never of others of the same run:

    RUN/adapter           summary.json, and the last line of safety.jsonl up to its end
    a checkpoint          the evaluation and the safety check of its step
    any other adapter     those of the checkpoint that holds the same weights
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import TypeAdapter, ValidationError

from trainer.checkpoints.folder import list_checkpoints
from trainer.conditions import Outcome, Requirements, judge
from trainer.errors import ConfigError, GateFailed
from trainer.run_directory import RunDirectory, read_lines
from trainer.trained_model import find_run

_WEIGHTS = "adapter_model.safetensors"


def check_requirements(adapter: Path, *, is_ignored: bool = False) -> dict[str, dict[str, Any]]:
    """Return what `merge.require` of the adapter's run asks, and what was measured, as JSON.

    Empty for an adapter that lies in no run, or in one that requires nothing.
    is_ignored: return what does not hold as well.

    Raises: GateFailed when something does not hold; ConfigError when resolved.json cannot be used.
    """
    run = find_run(adapter)
    required = {} if run is None else _read_required(run)
    if run is None or not required:
        return {}
    outcomes = judge(required, measured_figures(run, adapter))
    if not is_ignored and not all(outcome.is_met for outcome in outcomes):
        raise _refused(run, adapter, outcomes)
    return {
        outcome.name: {
            "required": outcome.condition,
            "measured": outcome.measured,
            "met": outcome.is_met,
        }
        for outcome in outcomes
    }


def measured_figures(run: RunDirectory, adapter: Path) -> dict[str, float]:
    """Return every figure of the run that was measured on these very weights."""
    checks = list(_read_lines(run.safety))
    found: dict[str, Any] = {}
    if adapter.resolve() == run.adapter.resolve():
        summary = _read_object(run.summary)
        after = summary.get("after")
        losses = after if isinstance(after, dict) else {}
        found["eval_loss"], found["test_loss"] = losses.get("validation"), losses.get("test")
        found["train_loss"] = summary.get("train_loss")
        end = summary.get("steps")
        checks = [line for line in checks if isinstance(end, int) and line["step"] <= end][-1:]
    else:
        step = _step_of(run, adapter)
        found["eval_loss"] = _evaluated_at(run, step)
        checks = [line for line in checks if line["step"] == step][:1]
    for line in checks:
        found |= {f"safety.{name}": value for name, value in line.items()}
    return {name: float(value) for name, value in found.items() if _is_number(value)}


def _evaluated_at(run: RunDirectory, step: int | None) -> object:
    """Return the validation loss of the weights after this step.

    What follows the line of the whole training is measured on the best weights instead.
    """
    for line in _read_lines(run.metrics):
        if line["step"] == step and ("eval_loss" in line or "train_loss" in line):
            return line.get("eval_loss")
    return None


def _step_of(run: RunDirectory, adapter: Path) -> int | None:
    checkpoints = list_checkpoints(run.checkpoints)
    here = adapter.resolve()
    own = [checkpoint.step for checkpoint in checkpoints if checkpoint.path.resolve() == here]
    same = (c.step for c in checkpoints if _has_same_weights(c.path, adapter))
    return own[0] if own else next(same, None)


def _has_same_weights(checkpoint: Path, adapter: Path) -> bool:
    try:
        return filecmp.cmp(checkpoint / _WEIGHTS, adapter / _WEIGHTS, shallow=False)
    except FileNotFoundError:
        return False


def _read_required(run: RunDirectory) -> Requirements:
    path = run.resolved_config
    try:
        merge = json.loads(path.read_text(encoding="utf-8")).get("merge") or {}
        return TypeAdapter(Requirements).validate_python(merge.get("require") or {})
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path} cannot be used: {_reason(error)}",
            rule="what a run requires of a merge is written there when it starts, as merge.require",
            fix="correct the config of the run and start it again, or bring the file back",
        ) from error


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"merge.require.{first['loc'][0]} is {first['input']!r}, expected: {first['msg']}"


def _refused(run: RunDirectory, adapter: Path, outcomes: Sequence[Outcome]) -> GateFailed:
    is_result = adapter.resolve() == run.adapter.resolve()
    target = shlex.quote(str(run.path if is_result else adapter))
    lines = "\n".join(f"  {_line(outcome)}" for outcome in outcomes)
    return GateFailed(
        f"{adapter} is not merged, it does not meet what the run requires:\n{lines}",
        rule="every figure under merge.require must be measured and hold before a model is merged",
        fix="train a better one, or correct merge.require and start the run again; to merge all "
        f"the same: rankzero merge {target} --ignore-requirements",
    )


def _line(outcome: Outcome) -> str:
    measured = "was not measured" if outcome.measured is None else f"is {outcome.measured}"
    verdict = "met" if outcome.is_met else "NOT met"
    return f"{outcome.name} {measured}, required {outcome.condition}: {verdict}"


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines that tell a step; one that a kill cut short does not."""
    with contextlib.suppress(OSError):
        yield from (line for line in read_lines(path) if isinstance(line.get("step"), int))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
