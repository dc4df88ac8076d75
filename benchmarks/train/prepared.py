"""The product's part before training: a config, its plan for this machine, its prepared rows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks.train.processes import ROOT
from benchmarks.train.profiles import Profile, Row, read_chats
from benchmarks.train.rows import Example, count_labels, count_tokens, save_examples, to_example
from benchmarks.train.setup import (
    ENDLESS,
    LEARNING_RATE,
    LORA_ALPHA,
    LORA_RANK,
    MAX_GRAD_NORM,
    SEED,
    Setup,
)
from benchmarks.train.ways import Rows
from launcher.planning import Target, plan_run
from trainer.config import load_config, to_json
from trainer.data.store import load_prepared
from trainer.prepare import prepare


def set_up(
    profile: Profile,
    model: Path,
    folder: Path,
    steps: int | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Setup, dict[str, Any]]:
    """Write rows, prepare them once with the product, and write what the workers are told.

    Returns it, and what the result says of the rows.
    """
    steps = steps or profile.steps_per_round
    rows = make_rows(profile, model, profile.examples_per_step * steps)
    settings: dict[str, Any] = {
        "model": str(model.resolve()),
        "cache_dir": str(folder / "cache"),
        "max_length": profile.max_length,
        "examples_per_step": profile.examples_per_step,
        "max_steps": ENDLESS,
    }
    config = write_config(folder, "rows", rows, settings, overrides)
    examples = prepared_examples(config)
    assert len(examples) == len(rows), "a row was lost or split in preparation"
    lengths = [len(example["input_ids"]) for example in examples]
    chosen = spread_over_lengths(lengths, profile.examples_per_step)
    few = [rows[index] for index in chosen]
    step_config = write_config(folder, "step", few, settings | {"max_steps": 1}, overrides)
    save_examples(folder / "rows.npz", examples)
    save_examples(folder / "step.npz", prepared_examples(step_config))
    shape = Rows(
        profile.examples_per_step, steps, profile.max_length, max(lengths), float(np.mean(lengths))
    )
    setup = Setup(
        model=settings["model"],
        folder=str(folder),
        rows=shape,
        examples=str(folder / "rows.npz"),
        step_examples=str(folder / "step.npz"),
        config=str(config),
        step_config=str(step_config),
    )
    setup.write(folder / "setup.json")
    facts = {
        "about": profile.about,
        "rows": dataclasses.asdict(shape),
        "tokens": count_tokens(examples),
        "labels": count_labels(examples),
    }
    return setup, facts


def make_rows(profile: Profile, model: Path, num_rows: int) -> list[Row]:
    """Make the rows of a profile, counting tokens as the model does."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    chats = read_chats(ROOT / "examples" / "data")
    return profile.make(chats, num_rows, lambda text: len(tokenizer.encode(text).ids))


def spread_over_lengths(lengths: Sequence[int], count: int) -> list[int]:
    """Choose rows as long as the whole is: evenly through the rows in order of length. PURE."""
    order = np.argsort(lengths, kind="stable")
    places = (np.arange(count) + 0.5) * len(order) / count
    return [int(order[int(place)]) for place in places]


def write_config(
    folder: Path,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    overrides: Sequence[str] = (),
) -> Path:
    """Write rows and config, plan the run for this machine, and return the resolved config.

    `settings`: model, cache_dir, max_length, examples_per_step and max_steps. `overrides`: of the
    config, as `rankzero train --set` takes them.
    """
    source, given = folder / f"{name}.jsonl", folder / f"{name}.json"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "model": {"name": settings["model"]},
        "data": {
            "train": str(source),
            "max_length": settings["max_length"],
            "cache_dir": settings["cache_dir"],
        },
        "lora": {
            "r": LORA_RANK,
            "alpha": LORA_ALPHA,
            "dropout": 0.0,
            "target_modules": "all-linear",
        },
        "training": {
            "global_batch_size": settings["examples_per_step"],
            "max_steps": settings["max_steps"],
            "precision": "bf16",
            "learning_rate": LEARNING_RATE,
            "scheduler": "constant",
            "optimizer": "adamw_torch",
            "max_grad_norm": MAX_GRAD_NORM,
            "gradient_checkpointing": False,
            "logging_steps": ENDLESS,
        },
        "tracking": {"to": []},
        "seed": SEED,
        "output_dir": str(folder / f"{name}-run"),
    }
    given.write_text(json.dumps(values), encoding="utf-8")
    resolved = folder / f"{name}-resolved.json"
    resolved.write_text(to_json(plan_run(given, overrides, Target()).config), encoding="utf-8")
    return resolved


def prepared_examples(config_path: Path) -> list[Example]:
    """Prepare the rows of a config, and return them as every way gets them, in their order."""
    split = load_prepared(prepare(load_config(config_path))).split("train")
    assert split is not None
    return [to_example(*split.row(index)) for index in range(len(split))]
