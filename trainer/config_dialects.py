"""Other spellings of the settings: one table, and the translation of a whole file.

A spelling is found wherever it is written: flat, or inside any section, because existing configs
group the same names differently. Names that mean different things in different sections
(`max_length`, `seed`) are listed with their section.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from trainer.config_groups import GROUPS, Group
from trainer.config_problems import KeyPath, Problem, dotted, line_of
from trainer.config_schema import setting_paths
from trainer.config_values import TRANSLATED, RefusedError

# Spelling -> canonical setting, the value taken as it is.
RENAMED: dict[str, str] = {
    "model_name_or_path": "model.name",
    "base_model_name_or_path": "model.name",
    "base_model_name": "model.name",
    "base_model": "model.name",
    "model_name": "model.name",
    "trust_remote_code": "model.trust_remote_code",
    "model_revision": "model.revision",
    "attn_implementation": "model.attention",
    "train_file": "data.train",
    "train_path": "data.train",
    "dataset_name": "data.train",
    "validation_file": "data.validation",
    "validation_path": "data.validation",
    "eval_file": "data.validation",
    "test_file": "data.test",
    "test_path": "data.test",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "model.max_length": "data.max_length",
    "training.max_length": "data.max_length",
    "dataset_num_proc": "data.workers",
    "preprocessing_num_workers": "data.workers",
    "use_lora": "lora.enabled",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_bias": "lora.bias",
    "lora_target_modules": "lora.target_modules",
    "lora_modules_to_save": "lora.modules_to_save",
    "num_train_epochs": "training.epochs",
    "num_epochs": "training.epochs",
    "lr": "training.learning_rate",
    "train_batch_size": "training.batch_size",
    "per_device_train_batch_size": "training.batch_size",
    "micro_batch_size": "training.batch_size",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "eval_batch_size": "evaluation.batch_size",
    "gradient_clipping": "training.max_grad_norm",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "dataloader_num_workers": "training.dataloader_workers",
    "deepspeed": "training.deepspeed_config",
    "eval_on_start": "evaluation.at_start",
    "load_best_model_at_end": "evaluation.load_best",
    "early_stopping_patience": "evaluation.early_stopping_patience",
    "early_stopping_threshold": "evaluation.early_stopping_threshold",
    "early_stopping_min_delta": "evaluation.early_stopping_threshold",
    "save_total_limit": "checkpoint.keep_last",
    "save_epochs": "checkpoint.every_epochs",
    "run_name": "tracking.run_name",
    "wandb_name": "tracking.run_name",
    "wandb_run_name": "tracking.run_name",
    "training.output_dir": "output_dir",
    "training.seed": "seed",
    "data.seed": "seed",
}
# Sections under another name; only where a mapping follows.
SECTION_SPELLINGS = {
    "dataset": "data",
    "peft": "lora",
    "lora_config": "lora",
    "training_args": "training",
    "training_arguments": "training",
    "quantization": "model",
    "quantization_config": "model",
    "bnb_config": "model",
}
# A whole section given as one value.
SECTION_VALUES: dict[str, tuple[str, type]] = {
    "model": ("model.name", str),
    "lora": ("lora.enabled", bool),
}

_CANONICAL = frozenset(setting_paths())
_SECTIONS = frozenset(path.rpartition(".")[0] for path in _CANONICAL) - {""}
_LEAVES = Counter(path.rpartition(".")[2] for path in _CANONICAL if path.count(".") == 1)
# Too general to mean one thing on the top level of a flat file.
_TOO_GENERAL = {"name", "enabled", "to", "train", "test", "order", "shape", "workers"}
FLAT: dict[str, str] = {
    path.rpartition(".")[2]: path
    for path in sorted(_CANONICAL)
    if path.count(".") == 1
    and _LEAVES[path.rpartition(".")[2]] == 1
    and path.rpartition(".")[2] not in _TOO_GENERAL
}
"""Canonical names that need no section because only one section has them."""


@cache
def known_names() -> Mapping[str, str]:
    """Map everything a user may write to the canonical setting it means, to suggest it."""
    translated = {spelling: rule.target for spelling, rule in TRANSLATED.items()}
    grouped = {spelling: target for group in GROUPS for spelling, target in group.targets.items()}
    sections = {section: section for section in _SECTIONS}
    paths = {path: path for path in sorted(_CANONICAL)}
    leaves = {path.rpartition(".")[2]: path for path in paths}
    return {**RENAMED, **translated, **grouped, **leaves, **FLAT, **sections, **paths}


@dataclass
class Normalised:
    """A config in canonical names, as nested values, and where each value was written."""

    values: dict[str, Any] = field(default_factory=dict)
    written: dict[str, KeyPath] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def normalise(values: Mapping[str, Any], lines: Mapping[KeyPath, int]) -> Normalised:
    """Translate a file's values to canonical names. Unknown keys stay for validation to report.

    A null value means the default, as does leaving the key out.
    """
    translation = _Translation(lines)
    for key, value in values.items():
        translation.take_top_level(key, value)
    translation.take_groups()
    return translation.result


class _Translation:
    def __init__(self, lines: Mapping[KeyPath, int]) -> None:
        self.lines = lines
        self.result = Normalised()
        # Spellings that only mean something together, first one written of each.
        self.grouped: dict[str, tuple[Any, KeyPath]] = {}

    def take_top_level(self, key: str, value: Any) -> None:
        alias = SECTION_SPELLINGS.get(key)
        section = alias if alias and isinstance(value, dict) else key
        if section not in _SECTIONS:
            self.take("", key, value, (key,))
        elif isinstance(value, dict):
            self.take_section(section, value, (key,))
        elif value is not None:
            target, kind = SECTION_VALUES.get(section, ("", type(None)))
            if target and isinstance(value, kind):
                self.put(target, value, (key,))
            else:
                text = f"`{key}` must be a section of `key: value` lines, not {value!r}"
                self.add_problem(text, (key,))

    def take_section(self, section: str, values: Mapping[str, Any], where: KeyPath) -> None:
        for key, value in values.items():
            nested = f"{section}.{key}"
            if nested in _SECTIONS and isinstance(value, dict):
                self.take_section(nested, value, (*where, key))
            else:
                self.take(section, key, value, (*where, key))

    def take(self, section: str, key: str, value: Any, where: KeyPath) -> None:
        """Put one value where it belongs."""
        parts = (*section.split("."), key) if section else (key,)
        full = dotted(parts)
        spelling = full if full in RENAMED else key
        group = next((group for group in GROUPS if key in group.targets), None)
        own = full if full in _CANONICAL else None if section else FLAT.get(key)
        if value is None and (own or group or spelling in RENAMED or key in TRANSLATED):
            return
        if key in TRANSLATED:
            self.attempt(partial(self.put_translated, key, value, where), where)
        elif own:
            self.put(own, value, where)
        elif group:
            self.take_grouped(key, value, where)
        elif spelling in RENAMED:
            self.put(RENAMED[spelling], value, where)
        else:
            self.put_at(parts, value, where)

    def take_grouped(self, key: str, value: Any, where: KeyPath) -> None:
        earlier = self.grouped.setdefault(key, (value, where))
        if earlier[0] != value:
            self.add_conflict(key, (earlier[0], earlier[1]), (value, where))

    def take_groups(self) -> None:
        for group in GROUPS:
            given = {key: self.grouped[key] for key in group.targets if key in self.grouped}
            if given:
                first = next(iter(given.values()))[1]
                self.attempt(partial(self.put_group, group, given), first)

    def put_group(self, group: Group, given: Mapping[str, tuple[Any, KeyPath]]) -> None:
        """Put what a group's spellings mean together, each at the place of its own spelling."""
        plain = {key: value for key, (value, _) in given.items()}
        for target, (value, spelling) in group.combine(plain, self.result.values).items():
            self.put(target, value, given[spelling][1])

    def put_translated(self, key: str, value: Any, where: KeyPath) -> None:
        for target, meant in TRANSLATED[key].translate(value).items():
            self.put(target, meant, where)

    def attempt(self, translate: Callable[[], None], where: KeyPath) -> None:
        try:
            translate()
        except RefusedError as refusal:
            self.add_problem(f"`{dotted(where)}`: {refusal}", where)

    def put(self, target: str, value: Any, where: KeyPath) -> None:
        self.put_at(tuple(target.split(".")), value, where)

    def put_at(self, parts: tuple[str, ...], value: Any, where: KeyPath) -> None:
        target = dotted(parts)
        section = self.result.values
        for part in parts[:-1]:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                return  # `data.columns: text`: validation says that it is no section
        earlier = self.result.written.get(target)
        if earlier is None:
            section[parts[-1]] = value
            self.result.written[target] = where
        elif section[parts[-1]] != value:
            self.add_conflict(target, (section[parts[-1]], earlier), (value, where))

    def add_conflict(
        self, target: str, first: tuple[Any, KeyPath], second: tuple[Any, KeyPath]
    ) -> None:
        line = line_of(self.lines, first[1])
        self.add_problem(
            f"`{dotted(second[1])}` gives {target} as {second[0]!r}, but `{dotted(first[1])}`"
            f" (line {line}) gives {first[0]!r}; keep one",
            second[1],
        )

    def add_problem(self, text: str, where: KeyPath) -> None:
        self.result.problems.append(Problem(text, line=line_of(self.lines, where)))
