"""Settings that contradict each other, or that this run would ignore. PURE.

Values are compared with their defaults, not with what was written: a resolved config names every
setting and must load again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trainer.config_data import ColumnNames
from trainer.config_defaults import has_validation
from trainer.config_problems import did_you_mean
from trainer.config_schema import Config
from trainer.config_types import Section
from trainer.lora_presets import ALL_LINEAR, LORA_PRESETS


@dataclass(frozen=True)
class Contradiction:
    """What is wrong, and the settings it is about, the one to change first."""

    paths: tuple[str, ...]
    text: str


def find_contradictions(config: Config) -> list[Contradiction]:
    """List every pair of settings that cannot both be meant, and every setting without effect."""
    return [
        contradiction
        for check in (
            _full_fine_tuning,
            _quantization,
            _lora_targets,
            _length_of_the_run,
            _batch,
            _schedule,
            _optimizer,
            _evaluation,
            _splits,
            _row_shapes,
            _order,
        )
        for contradiction in check(config)
    ]


def changed(section: Section, *names: str) -> list[str]:
    """Return the settings of a section that differ from their defaults."""
    fields = type(section).model_fields
    return [
        name
        for name in names or fields
        if getattr(section, name) != fields[name].get_default(call_default_factory=True)
    ]


def _full_fine_tuning(config: Config) -> Iterator[Contradiction]:
    if config.lora.enabled:
        return
    ignored = [f"lora.{name}" for name in changed(config.lora) if name != "enabled"]
    if ignored:
        yield Contradiction(
            (*ignored, "lora.enabled"),
            f"`lora.enabled` is false (full fine-tuning), so {_list(ignored)} would be ignored; "
            "drop them, or enable LoRA",
        )
    if config.model.quantization not in ("auto", "none"):
        yield Contradiction(
            ("model.quantization", "lora.enabled"),
            f"`model.quantization` is {config.model.quantization} but `lora.enabled` is false: "
            "quantised weights cannot be trained themselves; enable LoRA, or set it to none",
        )
    for name in changed(config.merge):
        yield Contradiction(
            (f"merge.{name}", "lora.enabled"),
            f"`merge.{name}` would be ignored: `lora.enabled` is false, and full fine-tuning has "
            "no adapter to merge; drop it",
        )


def _quantization(config: Config) -> Iterator[Contradiction]:
    model = config.model
    if not model.double_quantization and model.quantization in ("none", "int8"):
        yield Contradiction(
            ("model.double_quantization", "model.quantization"),
            f"`model.double_quantization` would be ignored: `model.quantization` is "
            f"{model.quantization}, and only nf4 and fp4 have scales to quantise; drop it",
        )


def _lora_targets(config: Config) -> Iterator[Contradiction]:
    targets, path = config.lora.target_modules, ("lora.target_modules",)
    presets = [*LORA_PRESETS, ALL_LINEAR]
    if isinstance(targets, tuple):
        named = [name for name in targets if name in presets]
        if named and config.lora.enabled:
            yield Contradiction(
                path,
                f"`lora.target_modules` lists the preset `{named[0]}` as if it were a layer; "
                f"write `target_modules: {named[0]}`, or layer names alone",
            )
        if not targets:
            yield Contradiction(path, "`lora.target_modules` is empty; name a layer or a preset")
    elif targets not in presets:
        meant = did_you_mean(targets, {preset: preset for preset in presets})
        yield Contradiction(
            path,
            f"`lora.target_modules` is `{targets}`, which is no preset ({', '.join(presets)})"
            f"{meant or f'; write layer names as a list: [{targets}]'}",
        )


def _length_of_the_run(config: Config) -> Iterator[Contradiction]:
    training = config.training
    yield from _both(config, "training.epochs", "training.max_steps")
    yield from _both(config, "training.warmup_steps", "training.warmup_ratio")
    if training.max_steps and (training.warmup_steps or 0) >= training.max_steps:
        yield Contradiction(
            ("training.warmup_steps", "training.max_steps"),
            f"`training.warmup_steps` is {training.warmup_steps} of {training.max_steps} steps: "
            "the peak rate is never reached; lower it",
        )


def _batch(config: Config) -> Iterator[Contradiction]:
    training, longest = config.training, config.data.max_length
    pair = ("training.batch_size", "training.gradient_accumulation_steps")
    given = [path for path in pair if _value(config, path) is not None]
    if training.global_batch_size and given:
        yield Contradiction(
            ("training.global_batch_size", *given),
            f"`training.global_batch_size` and {_list(given)} both say how many examples make a "
            "step; keep one of the two",
        )
    if training.max_tokens_per_device and training.max_tokens_per_device < longest:
        yield Contradiction(
            ("training.max_tokens_per_device", "data.max_length"),
            f"`training.max_tokens_per_device` is {training.max_tokens_per_device}, so an example "
            f"of `data.max_length` {longest} would not fit; raise it to {longest} or more",
        )


def _schedule(config: Config) -> Iterator[Contradiction]:
    training = config.training
    if training.min_lr_ratio and training.scheduler != "cosine":
        yield Contradiction(
            ("training.min_lr_ratio", "training.scheduler"),
            f"`training.min_lr_ratio` would be ignored: `training.scheduler` is "
            f"{training.scheduler}, and only cosine has a floor; drop one",
        )
    for name in ("warmup_steps", "warmup_ratio"):
        if training.scheduler == "constant" and getattr(training, name):
            yield Contradiction(
                (f"training.{name}", "training.scheduler"),
                f"`training.{name}` would be ignored: `training.scheduler` is constant; "
                "write constant_with_warmup, or drop it",
            )


def _optimizer(config: Config) -> Iterator[Contradiction]:
    training = config.training
    if training.optimizer not in ("sgd", "adafactor"):
        return
    ignored = changed(training, "adam_beta1", "adam_beta2", "adam_epsilon")
    if ignored:
        paths = [f"training.{name}" for name in ignored]
        yield Contradiction(
            (*paths, "training.optimizer"),
            f"{_list(paths)} would be ignored: `training.optimizer` is {training.optimizer}; "
            "drop one",
        )


def _evaluation(config: Config) -> Iterator[Contradiction]:
    yield from _both(config, "evaluation.every_steps", "evaluation.every_epochs")
    evaluation, data = config.evaluation, config.data
    if not has_validation(data):
        ignored = changed(
            evaluation,
            "every_steps",
            "every_epochs",
            "early_stopping_patience",
            "early_stopping_threshold",
        )
        if not (data.test or data.test_size):
            ignored += changed(evaluation, "batch_size")
        if ignored:
            paths = [f"evaluation.{name}" for name in ignored]
            yield Contradiction(
                tuple(paths),
                f"{_list(paths)} would be ignored: there is no validation data; give "
                "`data.validation` or `data.validation_size`, or drop it",
            )
    elif evaluation.early_stopping_threshold and not evaluation.early_stopping_patience:
        yield Contradiction(
            ("evaluation.early_stopping_threshold",),
            "`evaluation.early_stopping_threshold` would be ignored: nothing stops early without "
            "`evaluation.early_stopping_patience`; give it, or drop this",
        )


def _splits(config: Config) -> Iterator[Contradiction]:
    data, fractions = config.data, 0.0
    for split in ("validation", "test"):
        share = getattr(data, f"{split}_size")
        path = f"data.{split}_size"
        if share and getattr(data, split):
            yield Contradiction(
                (path, f"data.{split}"),
                f"`{path}` would be ignored: `data.{split}` names the rows; drop one",
            )
        if share >= 1 and share != int(share):
            yield Contradiction(
                (path,),
                f"`{path}` is {share:g}, neither a part of the rows (below 1) nor a whole number "
                "of them",
            )
        fractions += share if share < 1 else 0
    if fractions >= 1:
        yield Contradiction(
            ("data.validation_size", "data.test_size"),
            f"`data.validation_size` and `data.test_size` take {fractions:.0%} of the rows and "
            "leave nothing to train on; lower them",
        )


# Columns each row shape reads.
_COLUMNS_OF = {
    "instruction": {"instruction", "input", "response", "system"},
    "prompt_completion": {"prompt", "completion"},
    "messages": {"messages", "system"},
    "text": {"text"},
}


def _row_shapes(config: Config) -> Iterator[Contradiction]:
    data = config.data
    sources = (*data.train, *data.validation, *data.test)
    shapes = {source.shape or data.shape for source in sources}
    if "auto" in shapes:
        return
    laid_out = f"rows are laid out as {' and '.join(sorted(shapes))}"
    if data.too_long == "split" and "text" not in shapes:
        yield Contradiction(
            ("data.too_long", "data.shape"),
            f"`data.too_long` is split but {laid_out}: only plain text can be split; "
            "write truncate or skip",
        )
    if data.system_prompt and shapes <= {"text", "prompt_completion"}:
        yield Contradiction(
            ("data.system_prompt", "data.shape"),
            f"`data.system_prompt` would be ignored: {laid_out}, without turns; drop it",
        )
    if data.chat_template and shapes == {"text"}:
        yield Contradiction(
            ("data.chat_template", "data.shape"),
            f"`data.chat_template` would be ignored: {laid_out}, without turns; drop it",
        )
    used = set().union(*(_COLUMNS_OF[shape] for shape in shapes))
    for name in ColumnNames.model_fields:
        if name in changed(data.columns) and name not in used:
            yield Contradiction(
                (f"data.columns.{name}", "data.shape"),
                f"`data.columns.{name}` would be ignored: {laid_out}; drop one",
            )


_ORDER = re.compile(r"shuffle|given|length|column:.+|function:[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def _order(config: Config) -> Iterator[Contradiction]:
    order = config.data.order
    if not _ORDER.fullmatch(order):
        names = ("shuffle", "given", "length", "column:NAME", "function:package.module.name")
        meant = did_you_mean(order, {name: name for name in names})
        yield Contradiction(
            ("data.order",), f"`data.order` is `{order}`, not one of {', '.join(names)}{meant}"
        )


def _both(config: Config, first: str, second: str) -> Iterator[Contradiction]:
    if _value(config, first) is not None and _value(config, second) is not None:
        yield Contradiction(
            (first, second), f"`{first}` and `{second}` exclude each other; keep one"
        )


def _value(config: Config, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _list(paths: list[str]) -> str:
    return ", ".join(f"`{path}`" for path in paths)
