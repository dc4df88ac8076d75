"""What must be the same for a run to go on: data, base model, what is learned and how. Torch-free.

World size, engine, ZeRO stage, precision, quantisation of the frozen base and the size of a
micro-batch are not in it: they may change freely.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.errors import ConfigError

FILE_NAME = "contract.json"
FORMAT = 1
# Settings under which a step gives other weights. Batch and length come in as what they amount to.
_TRAINING = (
    "learning_rate",
    "optimizer",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "max_grad_norm",
    "scheduler",
    "min_lr_ratio",
    "neftune_noise_alpha",
)


@dataclass(frozen=True)
class Facts:
    """What a contract says besides settings."""

    data_fingerprint: str
    num_examples: int
    chat_template: str
    """Digest of the template."""
    base_model: str | None
    """Digest of the weights; None when no file of them is here."""
    global_batch_size: int
    num_steps: int
    warmup_steps: int
    versions: Mapping[str, str]


def make_contract(config: Config, facts: Facts) -> dict[str, Any]:
    """Return the contract of a run, as JSON values. PURE."""
    training = config.training.model_dump(mode="json")
    lora = config.lora.model_dump(mode="json")
    settings = {f"training.{name}": training[name] for name in _TRAINING} | {"seed": config.seed}
    settings |= {f"lora.{name}": value for name, value in lora.items()}
    return {
        "format": FORMAT,
        "data_fingerprint": facts.data_fingerprint,
        "num_examples": facts.num_examples,
        "chat_template": facts.chat_template,
        "base_model": {"name": Path(config.model.name).name, "digest": facts.base_model},
        "global_batch_size": facts.global_batch_size,
        "num_steps": facts.num_steps,
        "warmup_steps": facts.warmup_steps,
        "settings": settings,
        "versions": dict(facts.versions),
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List what has changed, a line each: what, then, now. PURE."""
    found = []
    if then.get("data_fingerprint") != now["data_fingerprint"]:
        found.append(
            f"data: {then.get('num_examples')} training examples "
            f"({_short(then.get('data_fingerprint'))}) then, {now['num_examples']} "
            f"({_short(now['data_fingerprint'])}) now: rows, data settings or tokenizer"
        )
    if then.get("chat_template") != now["chat_template"]:
        found.append(
            f"chat template: {_short(then.get('chat_template'))} then, "
            f"{_short(now['chat_template'])} now"
        )
    found += _base_model(then.get("base_model") or {}, now["base_model"])
    for key, name in _LENGTHS.items():
        if then.get(key) != now[key]:
            found.append(f"{name}: {then.get(key)} then, {now[key]} now")
    old, new = then.get("settings") or {}, now["settings"]
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            found.append(
                f"{name}: {json.dumps(old.get(name))} then, {json.dumps(new.get(name))} now"
            )
    return found


# What a saved tensor's name and shape depend on: no change of these can be accepted.
_FIXED = (
    "lora.enabled:",
    "lora.r:",
    "lora.target_modules:",
    "lora.rank_pattern:",
    "lora.modules_to_save:",
    "lora.bias:",
    "lora.use_dora:",
    "training.optimizer:",
)
_LENGTHS = {
    "global_batch_size": "training.global_batch_size",
    "num_steps": "steps of the run (training.epochs or max_steps)",
    "warmup_steps": "steps of warm-up",
}


def _base_model(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if None in (then.get("digest"), now["digest"]) or then.get("digest") == now["digest"]:
        return []
    return [
        f"base model: the weights of {then.get('name')} ({_short(then.get('digest'))}) then, "
        f"{now['name']} ({_short(now['digest'])}) now"
    ]


def version_notes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List libraries whose version has changed: allowed, and worth saying. PURE."""
    old = then.get("versions") or {}
    return [
        f"{name} {old[name]} then, {version} now"
        for name, version in now["versions"].items()
        if name in old and old[name] != version
    ]


def check_contract(
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    where: Path,
    *,
    allow_changes: bool,
    is_trained: bool = True,
) -> list[str]:
    """Compare, and return lines to print. `is_trained`: there is something of that run to lose.

    Raises: ConfigError listing every difference, unless changes are allowed.
    """
    changed = differences(then, now)
    fixed = [text for text in changed if text.startswith(_FIXED)]
    if fixed and allow_changes:
        raise ConfigError(
            f"{where} cannot go on with this: {fixed[0]}",
            rule="adapter and optimizer keep the form they were begun with",
            fix="change it back, or choose another output_dir",
        )
    if changed and not allow_changes:
        listed = "\n".join(f"  {number}. {text}" for number, text in enumerate(changed, 1))
        raise ConfigError(
            f"this is not the run that {where} belongs to:\n{listed}",
            rule="a run goes on with the data, the base model and the settings it began with",
            fix="change them back, choose another output_dir, or accept the changes with "
            "--set checkpoint.allow_changes=true"
            if is_trained
            else "nothing was trained there yet: begin it anew with --resume never",
        )
    accepted = [f"changed since it was saved: {text}" for text in changed]
    return accepted + [f"note: {text}" for text in version_notes(then, now)]


def read_contract(folder: Path) -> dict[str, Any] | None:
    """Read the contract of a run directory or checkpoint; None when there is none to read."""
    try:
        values = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def read_global_batch_size(folder: Path) -> int | None:
    """Read the examples per step that a run directory or checkpoint was begun with."""
    size = (read_contract(folder) or {}).get("global_batch_size")
    return size if isinstance(size, int) else None


def _short(digest: Any) -> str:
    return str(digest)[:8]
