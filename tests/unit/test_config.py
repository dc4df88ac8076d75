"""The config: what existing files mean, and what a mistake is told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from jsonschema_specifications import REGISTRY

from launcher.starter import load_starter
from trainer.config import Config, json_schema, load_config, to_json
from trainer.config_dialects import FLAT, RENAMED, known_names
from trainer.config_file import load_config_file, parse_value
from trainer.config_groups import GROUPS
from trainer.config_schema import setting_paths
from trainer.config_values import TRANSLATED
from trainer.errors import ConfigError

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "tests" / "recipes"
SMALLEST = "model: {name: m}\ndata: {train: rows.jsonl}\n"

# The values each recipe names, and the defaults its system is known for, written out by hand.
RECIPE_VALUES: dict[str, dict[str, Any]] = {
    "medical-simple.yaml": {
        "seed": 42,
        "output_dir": "./checkpoints",
        "model.name": "microsoft/Phi-4-mini-instruct",
        "data.max_length": 512,
        "data.train": ["data/medical.jsonl"],
        "data.system_prompt": "You are a careful medical information assistant. "
        "You inform, you do not diagnose.",
        "data.test_size": 0.1,
        "data.validation_size": 0.1,
        "training.batch_size": 4,
        "training.gradient_accumulation_steps": 8,
        "training.global_batch_size": None,
        "training.learning_rate": 2e-4,
        "training.max_steps": 100,
        "training.epochs": None,
        "training.logging_steps": 10,
        "training.warmup_ratio": 0.03,
        "training.weight_decay": 0.01,
        "evaluation.early_stopping_patience": 3,
        "evaluation.every_steps": 10,
        "checkpoint.every_steps": 20,
        "checkpoint.keep_last": 3,
        "lora.r": 16,
        "lora.alpha": 32,
        "lora.dropout": 0.1,
        "lora.target_modules": ("q_proj", "v_proj", "k_proj", "o_proj"),
    },
    "medical-recommended.json": {
        "model.name": "microsoft/Phi-4-mini-instruct",
        "data.train": ["data/medical.jsonl"],
        "data.validation": ["data/medical_validation.jsonl"],
        "training.epochs": 3,
        "training.max_steps": None,
        "training.batch_size": 2,
        "evaluation.batch_size": 2,
        "training.gradient_accumulation_steps": 4,
        "training.learning_rate": 1e-4,
        "training.warmup_steps": 100,
        "training.warmup_ratio": None,
        "training.max_grad_norm": 1.0,
        "training.weight_decay": 0.01,
        "training.precision": "fp16",
        "training.gradient_checkpointing": True,
        "training.logging_steps": 10,
        "evaluation.every_steps": 200,
        "checkpoint.every_steps": 500,
        "checkpoint.every_epochs": 1,
        "output_dir": "./checkpoints",
        "tracking.to": (),
        "seed": 42,
        "lora.r": 32,
        "lora.alpha": 64,
        "lora.dropout": 0.1,
        "lora.target_modules": ("q_proj", "k_proj", "v_proj", "o_proj"),
    },
    "small-lora-sft.yaml": {
        "model.name": "microsoft/phi-1_5",
        "model.trust_remote_code": False,
        "data.train": ["data/text.csv"],
        "data.columns.text": "text",
        "data.shape": "text",
        "data.max_length": 1024,
        "lora.r": 8,
        "lora.alpha": 16,
        "lora.dropout": 0.1,
        "lora.bias": "none",
        "lora.target_modules": ("q_proj", "v_proj"),
        "output_dir": "./output",
        "training.batch_size": 1,
        "training.gradient_accumulation_steps": 8,
        "training.learning_rate": 2e-4,
        "training.max_steps": 500,
        "training.logging_steps": 10,
        "training.optimizer": "adamw_torch",
        "training.precision": "fp32",
        "training.scheduler": "cosine",
        "training.warmup_steps": 50,
        "training.dataloader_workers": 2,
        "training.dataloader_pin_memory": True,
        "evaluation.every_steps": None,
        "checkpoint.every_steps": 100,
    },
    "reasoning-mistral.json": {
        "model.name": "mistralai/Mistral-7B-v0.1",
        "lora.enabled": True,
        "model.quantization": "nf4",
        "model.double_quantization": True,
        "lora.r": 16,
        "lora.alpha": 32,
        "lora.dropout": 0.05,
        "data.train": ["data/formatted/combined_formatted.json"],
        "data.validation": ["data/formatted/validation.json"],
        "output_dir": "checkpoints/mistral-7b-reasoning",
        "data.max_length": 2048,
        "training.batch_size": 1,
        "training.gradient_accumulation_steps": 4,
        "training.epochs": 3,
        "training.learning_rate": 2e-5,
        "training.weight_decay": 0.01,
        "training.warmup_ratio": 0.03,
        "training.scheduler": "cosine",
        "training.precision": "fp16",
        "training.gradient_checkpointing": True,
        "evaluation.early_stopping_patience": 5,
        "evaluation.early_stopping_threshold": 0.01,
        "tracking.to": ("tensorboard",),
        "tracking.project": "SimpleFoundation",
        "tracking.run_name": "mistral-7b-v0.1-reasoning",
        "training.deepspeed_config": "deepspeed_configs/zero3.json",
    },
}


def _value(config: Config, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    if path in ("data.train", "data.validation", "data.test"):
        return [source.path for source in value]
    return value


def _load(tmp_path: Path, text: str, *overrides: str, name: str = "run.yaml") -> Config:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def _message(tmp_path: Path, text: str, *overrides: str, name: str = "run.yaml") -> str:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text, *overrides, name=name)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("recipe", RECIPE_VALUES)
def test_a_recipe_means_what_it_says(recipe: str) -> None:
    config = load_config(RECIPES / recipe)
    expected = RECIPE_VALUES[recipe]
    assert {path: _value(config, path) for path in expected} == expected


def test_every_recipe_is_covered() -> None:
    on_disk = {path.name for path in RECIPES.iterdir() if path.suffix in (".yaml", ".json")}
    assert on_disk == set(RECIPE_VALUES)


def _shipped() -> list[Path]:
    examples = [p for p in (ROOT / "examples").iterdir() if p.suffix in (".yaml", ".yml", ".json")]
    return sorted([*examples, *(RECIPES / name for name in RECIPE_VALUES)])


@pytest.mark.parametrize("path", _shipped(), ids=lambda path: path.name)
def test_a_resolved_config_loads_to_itself(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    resolved = tmp_path / "resolved.json"
    resolved.write_text(to_json(config), encoding="utf-8")
    assert load_config(resolved) == config
    assert json.loads(resolved.read_text()) == config.model_dump(mode="json")


def test_numbers_dates_and_words_of_yaml() -> None:
    texts = ["1e-5", "2E4", "1_000", ".5", "010", "1:30", "2024-01-01", "0x1f", "-3", "yes"]
    expected = [1e-5, 2e4, 1000, 0.5, "010", "1:30", "2024-01-01", "0x1f", -3, True]
    values = [parse_value(text) for text in texts]
    assert values == expected
    assert [type(value) for value in values] == [type(value) for value in expected]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.yaml", b"", "a.yaml: the file is empty"),
        ("a.yaml", b"# nothing yet\n", "only comments"),
        ("a.yaml", b"- model\n", "the file holds a list"),
        ("a.json", b"3", "the file holds a single value"),
        ("a.yaml", b"seed: 1\nmodel: {name: \xff}\n", "a.yaml:2: byte 0xff is not valid UTF-8"),
        ("a.yaml", b"seed: 1\nmodel: [\n", "a.yaml:3: not readable as YAML"),
        ("a.yaml", b"model:\n\tname: m\n", "indent with spaces"),
        ("a.yaml", b"seed: 1\n---\nseed: 2\n", "a.yaml:2: not readable as YAML"),
        ("a.yaml", b"model: &a [*a]\n", "an alias that contains itself"),
        ("a.yaml", b"seed: 1\nname: \x07\n", "a.yaml:2: not readable as YAML: unprintable"),
        ("a.json", b'{\n"seed": 1,\n}', "a.json:3: not readable as JSON"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
    ],
)
def test_an_unreadable_file_says_where(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert said in str(caught.value)
    assert "rule:" in str(caught.value)
    assert "fix:" in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="this is a folder"):
        load_config(tmp_path)


def test_json_lines_are_known_despite_tabs(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{\n\t"model": {"name": "a:b,{"},\n\t"data": {\n\t"train": [\n1,\n{}]}\n}')
    lines = load_config_file(path).lines
    assert lines[("model", "name")] == 2
    assert lines[("data", "train")] == 4
    assert lines[("data", "train", 1)] == 6


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "seed: 1\nmodel: {name: m}\ndata: {train: f}\nseed: 2\n"),
        ("a.json", '{"seed": 1,\n"model": {"name": "m"},\n"data": {"train": "f"},\n"seed": 2}'),
    ],
)
def test_a_key_written_twice(tmp_path: Path, name: str, text: str) -> None:
    message = _message(tmp_path, text, name=name)
    assert f"{name}:4: `seed` is written twice in the same place, first on line 1" in message


def test_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    text = "model: {name: m}\ndata:\n  train:\n  - &a {path: f, weight: 2}\n  - {<<: *a, path: g}\n"
    train = _load(tmp_path, text).data.train
    assert [(source.path, source.weight) for source in train] == [("f", 2), ("g", 2)]


def test_three_mistakes_give_three_messages(tmp_path: Path) -> None:
    message = _message(
        tmp_path,
        f"{SMALLEST}training:\n  learning_rte: 1e-4\n  batch_size: big\n"
        "  epochs: 3\n  max_steps: 10\n",
    )
    assert "run.yaml: 3 problems" in message
    assert (
        "run.yaml:4: unknown key `training.learning_rte`; "
        "did you mean `training.learning_rate`?" in message
    )
    assert "run.yaml:5: `training.batch_size` must be a whole number, not the text 'big'" in message
    assert "run.yaml:6: `training.epochs` and `training.max_steps` exclude each other" in message


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("lora_aplha: 3", "lora.alpha"),
        ("trainng: {epochs: 1}", "training"),
        ("model: {learning_rate: 1}", "training.learning_rate"),
        ("training: {num_train_epoch: 1}", "training.epochs"),
        ("evaluation: {batchsize: 1}", "evaluation.batch_size"),
        ("training: {batchsize: 1}", "training.batch_size"),
        ("data: {train: [{path: f, wieght: 2}]}", "weight"),
        ("data: {train: [{path: f, columns: {prmpt: a}}]}", "prompt"),
        ("training: {scheduler: cosin}", "cosine"),
        ("lora: {target_modules: agressive}", "aggressive"),
        ("data: {order: shufle}", "shuffle"),
    ],
)
def test_did_you_mean(tmp_path: Path, text: str, meant: str) -> None:
    message = _message(tmp_path, text)
    lines = [line for line in message.splitlines() if "did you mean" in line]
    assert len(lines) == 1
    assert lines[0].endswith(f"; did you mean `{meant}`?")
    assert "run.yaml:1:" in lines[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora_r: '8'", "`lora_r` (lora.r) must be a whole number, not the text '8'"),
        ("lora: {r: true}", "`lora.r` must be a whole number, not true"),
        ("lora: {r: 0}", "`lora.r` must be greater than 0, not 0"),
        ("lora: {dropout: 1}", "`lora.dropout` must be less than 1, not 1"),
        ("lora: {target_modules: 3}", "`lora.target_modules` must be text or a list, not 3"),
        ("lora: {rank_pattern: {q: a}}", "`lora.rank_pattern.q` must be a whole number"),
        ("training: {learning_rate: .nan}", "must be a finite number"),
        ("training: {learning_rate: fast}", "must be a number, not the text 'fast'"),
        ("training: 3", "`training` must be a section"),
        ("data: {columns: text}", "`data.columns` must be a section"),
        ("data: {test_size: x}", "`data.test_size` must be a number, not the text 'x'"),
        ("data: {train: []}", "`data.train` must be given, not an empty list"),
        ("seed: -1", "`seed` must be 0 or more, not -1"),
        ("load_in_4bit: 'yes'", "`load_in_4bit`: must be true or false, not 'yes'"),
        ("deepspeed: {stage: 3}", "`deepspeed` (training.deepspeed_config) must be text"),
    ],
)
def test_a_wrong_value_is_said_in_plain_words(tmp_path: Path, text: str, said: str) -> None:
    message = _message(tmp_path, text)
    assert any("run.yaml:1:" in line and said in line for line in message.splitlines()), message
    assert "pydantic" not in message
    assert "Input should" not in message


def test_what_is_required(tmp_path: Path) -> None:
    message = _message(tmp_path, "seed: 1\nlora: {r: 0}\n")
    assert "run.yaml: 3 problems" in message
    assert "`model.name` is required" in message
    assert "`data.train` is required" in message
    assert "`model.name` is required" in _message(tmp_path, "model: {}\ndata: {train: f}\n")


SPELLINGS: list[tuple[str, dict[str, Any]]] = [
    ("per_device_train_batch_size: 3", {"training.batch_size": 3}),
    ("model: org/name", {"model.name": "org/name"}),
    ("training: {seed: 7, output_dir: there}", {"seed": 7, "output_dir": "there"}),
    ("training: {max_length: 9}", {"data.max_length": 9}),
    ("max_length: 9", {"data.max_length": 9}),
    ("learning_rate: 1e-3", {"training.learning_rate": 1e-3}),
    ("lora: false", {"lora.enabled": False}),
    ("load_in_4bit: false\nbnb_4bit_use_double_quant: false", {"model.quantization": "none"}),
    ("load_in_8bit: true", {"model.quantization": "int8"}),
    (
        "quantization: {load_in_4bit: true, bnb_4bit_quant_type: fp4, "
        "bnb_4bit_use_double_quant: false}",
        {"model.quantization": "fp4", "model.double_quantization": False},
    ),
    ("bnb_4bit_compute_dtype: torch.bfloat16\nload_in_4bit: true", {"training.precision": "bf16"}),
    ("fp16: false", {"training.precision": "fp32"}),
    ("bf16: true\nfp16: false", {"training.precision": "bf16"}),
    ("bf16: auto", {"training.precision": "auto"}),
    ("use_wandb: true", {"tracking.to": ("tensorboard", "wandb")}),
    ("report_to: wandb\nwandb_project: p", {"tracking.to": ("wandb",), "tracking.project": "p"}),
    ("report_to: none", {"tracking.to": ()}),
    ("report_to: all", {"tracking.to": ("tensorboard", "wandb", "mlflow", "trackio")}),
    ("report_to: [mlflow]", {"tracking.to": ("mlflow",)}),
    ("optim: adamw_bnb_8bit", {"training.optimizer": "adamw_8bit"}),
    (
        "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr_rate: 0.1}",
        {"training.scheduler": "cosine", "training.min_lr_ratio": 0.1},
    ),
    (
        "validation_file: v\neval_strategy: epoch",
        {"evaluation.every_epochs": 1, "evaluation.every_steps": None},
    ),
    ("eval_strategy: no", {"evaluation.every_steps": None}),
    ("save_strategy: epoch", {"checkpoint.every_epochs": 1, "checkpoint.every_steps": None}),
    ("save_strategy: steps\nsave_steps: 7", {"checkpoint.every_steps": 7}),
    ("save_total_limit: 9", {"checkpoint.keep_last": 9}),
    ("use_flash_attention: true", {"model.attention": "flash_attention_2"}),
    ("use_flash_attention: false", {"model.attention": "auto"}),
    ("attn_implementation: eager", {"model.attention": "eager"}),
    ("max_steps: -1\nnum_train_epochs: 2", {"training.epochs": 2, "training.max_steps": None}),
    ("deepspeed: null\nlora_r: null", {"training.deepspeed_config": None, "lora.r": 16}),
    ("metric_for_best_model: eval_loss\ngreater_is_better: false", {"evaluation.load_best": True}),
    ("training.learning_rate: 3e-4", {"training.learning_rate": 3e-4}),
    ("seed: 5\ntraining: {seed: 5}", {"seed": 5}),
    ("train_on_inputs: true", {"data.train_on": "all"}),
    ("gradient_accumulation_steps: 4", {"training.batch_size": 1}),
    ("lr_scheduler_type: constant", {"training.warmup_ratio": 0}),
    ("model_name_or_path: a/b/", {"output_dir": "runs/b"}),
]


@pytest.mark.parametrize(("text", "expected"), SPELLINGS, ids=[text for text, _ in SPELLINGS])
def test_other_spellings(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    name = "" if "model: o" in text or "model_name" in text else "base_model: m\n"
    config = _load(tmp_path, f"{name}train_file: f\n{text}\n")
    assert {path: _value(config, path) for path in expected} == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora_r: 8\nlora: {r: 4}", ":2: `lora.r` gives lora.r as 4, but `lora_r` (line 1) gives"),
        ("seed: 1\ntraining: {seed: 2}", "`training.seed` gives seed as 2, but `seed` (line 1)"),
        ("fp16: true\nbf16: true", ":1: `fp16`: fp16 and bf16 are both true"),
        ("fp16: true\ntraining: {bf16: true}", "fp16 and bf16 are both true"),
        ("fp16: true\ntraining: {fp16: false}", "`training.fp16` gives fp16 as False"),
        ("fp16: true\ndtype: bfloat16", "dtype says bf16, fp16 says fp16"),
        ("torch_dtype: [int8]", "must be bfloat16, float16 or float32, not ['int8']"),
        ("load_in_4bit: true\nload_in_8bit: true", "are both true; keep one"),
        ("bnb_4bit_quant_type: nf4", "needs `load_in_4bit: true`"),
        ("wandb_project: p", "nothing is sent there"),
        ("use_wandb: false\nreport_to: wandb", "use_wandb is false but"),
        ("task_type: SEQ_CLS", "only causal language models"),
        ("metric_for_best_model: f1", "lowest eval_loss"),
        ("save_strategy: no", "a run always saves"),
        ("save_strategy: epoch\nsave_steps: 5", "save_steps has no effect"),
        ("eval_strategy: epoch\neval_steps: 5", "eval_steps has no effect"),
        ("eval_strategy: no\nvalidation_file: v", "validation data, which is then not used"),
        ("lr_scheduler_kwargs: {power: 2}", "min_lr_rate alone"),
        ("gradient_checkpointing_kwargs: {use_reentrant: true}", "always non-reentrant"),
    ],
)
def test_spellings_that_contradict(tmp_path: Path, text: str, said: str) -> None:
    message = _message(tmp_path, f"{text}\nmodel_name: m\ntrain_file: f\n")
    assert "1 problem\n" in message
    assert said in message


def test_every_spelling_names_a_setting() -> None:
    settings = set(setting_paths())
    grouped = {target for group in GROUPS for target in group.targets.values()}
    translated = {rule.target for rule in TRANSLATED.values()}
    assert {*RENAMED.values(), *FLAT.values(), *grouped, *translated} <= settings
    assert not set(RENAMED) & set(TRANSLATED)
    assert known_names()["per_device_train_batch_size"] == "training.batch_size"


CONTRADICTIONS: list[tuple[str, str]] = [
    ("samples: {top_p: 0.5}", "`samples.top_p` would be ignored"),
    ("safety: {max_new_tokens: 8}", "`safety.max_new_tokens` would be ignored"),
    ("safety: {enabled: true, prompts: []}", "`safety.prompts` is empty"),
    ("safety: {enabled: true, checker: a.b, rules: r.yaml}", "`safety.rules` would be ignored"),
    ("merge: {require: {safety.compliance_rate: '> 0.9'}}", "`safety.enabled` is false"),
    ("lora: {r: 8, progressive_ranks: [4, 16]}", "the last one `lora.r`"),
    ("lora: {r: 8, progressive_ranks: [8, 4]}", "ascending"),
    ("lora: {r: 8, progressive_ranks: [4, 8], rank_pattern: {q_proj: 2}}", "cannot be kept"),
    (
        "lora: {r: 8, progressive_ranks: [4, 8]}\ntraining: {optimizer: adafactor}",
        "adafactor does not allow",
    ),
    ("lora: {r: 8, progressive_ranks: [4, 8]}\ntraining: {max_steps: 1}", "2 ranks for 1 steps"),
    ("hub: {private: false}", "`hub.private` would be ignored"),
    ("hub: {repository: me/x, content: merged}", "`merge.after_training` is false"),
    ("hub: {repository: me/x}\nlora: {enabled: false}", "push model/ by hand"),
    ("lora: {enabled: false, r: 8}", "`lora.r` would be ignored"),
    ("lora: {enabled: false}\nmodel: {name: m, quantization: nf4}", "cannot be trained"),
    ("lora: {enabled: false}\nmerge: {after_training: true}", "no adapter to merge"),
    (
        "model: {name: m, quantization: int8, double_quantization: false}",
        "`model.double_quantization` would be ignored",
    ),
    ("lora: {target_modules: q_proj}", "as a list: [q_proj]"),
    ("lora: {target_modules: [balanced]}", "lists the preset `balanced`"),
    ("lora: {target_modules: []}", "is empty"),
    ("training: {epochs: 1, max_steps: 5}", "exclude each other"),
    ("training: {warmup_steps: 1, warmup_ratio: 0.1}", "exclude each other"),
    ("training: {warmup_steps: 5, max_steps: 5}", "never reached"),
    ("training: {global_batch_size: 4, batch_size: 2}", "keep one of the two"),
    ("training: {global_batch_size: 4, gradient_accumulation_steps: 2}", "keep one of the two"),
    ("training: {max_tokens_per_device: 100}", "would not fit"),
    ("training: {min_lr_ratio: 0.1, scheduler: linear}", "only cosine has a floor"),
    ("training: {warmup_steps: 5, scheduler: constant}", "constant_with_warmup"),
    ("training: {warmup_ratio: 0.03, scheduler: constant}", "constant_with_warmup"),
    ("training: {optimizer: sgd, adam_beta1: 0.8}", "`training.adam_beta1` would be ignored"),
    ("evaluation: {early_stopping_patience: 3}", "no validation data"),
    ("evaluation: {every_steps: 3}", "no validation data"),
    ("evaluation: {batch_size: 3}", "no validation data"),
    (
        "data: {train: f, validation: v}\nevaluation: {every_steps: 3, every_epochs: 1}",
        "exclude each other",
    ),
    (
        "data: {train: f, validation: v}\nevaluation: {early_stopping_threshold: 0.1}",
        "nothing stops early",
    ),
    ("data: {train: f, validation: v, validation_size: 0.1}", "`data.validation_size` would be"),
    ("data: {train: f, test: t, test_size: 5}", "`data.test_size` would be ignored"),
    ("data: {train: f, test_size: 1.5}", "neither a part of the rows"),
    ("data: {train: f, test_size: 0.5, validation_size: 0.5}", "leave nothing to train on"),
    ("data: {train: f, shape: messages, too_long: split}", "only plain text can be split"),
    ("data: {train: f, shape: text, system_prompt: s}", "`data.system_prompt` would be ignored"),
    (
        "data: {train: f, shape: prompt_completion, system_prompt: s}",
        "`data.system_prompt` would be ignored",
    ),
    ("data: {train: f, shape: text, chat_template: chatml}", "`data.chat_template` would be"),
    ("data: {train: f, shape: text, columns: {prompt: p}}", "`data.columns.prompt` would be"),
    ("data: {train: f, order: 'column:'}", "`data.order` is `column:`"),
    ("data: {train: f, order: 'function:a'}", "`data.order` is `function:a`"),
]


@pytest.mark.parametrize(("text", "said"), CONTRADICTIONS, ids=[text for text, _ in CONTRADICTIONS])
def test_contradictions(tmp_path: Path, text: str, said: str) -> None:
    required = "" if "model:" in text else "model: {name: m}\n"
    required += "" if "data:" in text else "data: {train: f}\n"
    message = _message(tmp_path, text + "\n" + required)
    assert "1 problem\n" in message
    assert said in message
    assert "run.yaml:1:" in message or "run.yaml:2:" in message


@pytest.mark.parametrize(
    "text",
    [
        "data: {train: [{path: f, shape: text}, {path: g}], too_long: split}",
        "data: {train: f, shape: text, too_long: split, columns: {text: body}}",
        "data: {train: f, test: t}\nevaluation: {batch_size: 3}",
        "data: {train: f, order: 'function:package.module.name'}",
        "data: {train: f}\ncheckpoint: {every_steps: 5, every_epochs: 1}",
        "data: {train: f, test_size: 80, validation_size: 80}",
        "data: {train: f}\nlora: {target_modules: aggressive, use_dora: true}",
    ],
)
def test_settings_that_only_look_contradictory(tmp_path: Path, text: str) -> None:
    _load(tmp_path, f"model: {{name: m}}\n{text}\n")


def test_an_override_wins(tmp_path: Path) -> None:
    text = f"{SMALLEST}training: {{epochs: 2, learning_rate: 1}}\nlora_r: 4\nseed: 1\n"
    overrides = ["training.learning_rate=1e-4", "lora.r=8", "data.train=[a, b]", "seed=null"]
    config = _load(tmp_path, text, *overrides)
    assert config.training.learning_rate == 1e-4
    assert config.lora.r == 8
    assert [source.path for source in config.data.train] == ["a", "b"]
    assert config.seed == 42


def test_an_override_puts_the_alternative_of_the_file_aside(tmp_path: Path) -> None:
    text = f"{SMALLEST}training: {{epochs: 2, batch_size: 2, gradient_accumulation_steps: 3}}\n"
    training = _load(
        tmp_path, text, "training.max_steps=5", "training.global_batch_size=4"
    ).training
    assert (training.epochs, training.max_steps) == (None, 5)
    assert (training.batch_size, training.global_batch_size) == (None, 4)


def test_mistakes_in_overrides(tmp_path: Path) -> None:
    overrides = ["lora_r=8", "seed", "lora.r=big", "lora.alpha=[", "training.max_steps=5"]
    message = _message(tmp_path, SMALLEST, *overrides, "training.epochs=1")
    assert "5 problems" in message
    assert "--set: unknown setting `lora_r`; did you mean `lora.r`?" in message
    assert "--set: `seed` has no value" in message
    assert "--set: `lora.r` must be a whole number, not the text 'big'" in message
    assert "--set: the value of `lora.alpha=[` cannot be read" in message
    assert "--set: `training.epochs` and `training.max_steps` exclude each other" in message


def test_defaults_that_follow(tmp_path: Path) -> None:
    config = _load(tmp_path, SMALLEST)
    training = config.training
    assert (training.epochs, training.warmup_ratio, training.global_batch_size) == (3, 0.03, 16)
    assert (config.evaluation.every_steps, config.checkpoint.every_steps) == (None, 100)
    text = "model: {name: m}\ndata: {train: f, validation_size: 9}\ntraining: {logging_steps: 7}\n"
    config = _load(tmp_path, text)
    assert (config.evaluation.every_steps, config.checkpoint.every_steps) == (7, 14)


def _run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer.config", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_module_prints_the_resolved_config(tmp_path: Path) -> None:
    recipe = RECIPES / "medical-simple.yaml"
    printed = _run_module(str(recipe), "--set", "seed=7")
    assert printed.returncode == 0
    assert printed.stdout == to_json(load_config(recipe, ["seed=7"]))
    failed = _run_module(str(tmp_path))
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "this is a folder" in failed.stderr
    assert "Traceback" not in failed.stderr


def _properties(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{owner.get('title')}.{name}": field
        for owner in (schema, *schema["$defs"].values())
        for name, field in owner.get("properties", {}).items()
    }


def test_the_schema_describes_every_setting() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["model", "data"]
    bare = [
        name
        for name, field in _properties(schema).items()
        if not field.get("description") and "$ref" not in field
    ]
    assert bare == []


def test_the_schema_is_json_schema_with_known_keywords_alone() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    known = {
        keyword
        for uri in REGISTRY
        if "/draft/2020-12/" in uri
        for keyword in REGISTRY[uri].contents.get("properties", {})
    }
    assert set(_keywords(schema)) - known == set()  # an unknown keyword is ignored, not refused
    validator = jsonschema.Draft202012Validator(schema)
    shares = {size: {"model": {"name": "m"}, "data": {"train": "t", "test_size": size}}
              for size in (-1, -0.5, 0, 0.1, 80)}  # fmt: skip
    assert [size for size in shares if not validator.is_valid(shares[size])] == [-1, -0.5]


def _keywords(schema: Any) -> Iterator[str]:
    """Every keyword of a schema and of those inside it; names of settings and values are none."""
    if isinstance(schema, list):
        for part in schema:
            yield from _keywords(part)
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        yield keyword
        if keyword in ("$defs", "properties"):
            yield from _keywords(list(value.values()))
        elif keyword not in ("const", "default", "enum", "examples"):
            yield from _keywords(value)


def test_the_starter_loads_and_its_comments_are_true(tmp_path: Path) -> None:
    text = load_starter()
    _load(tmp_path, text)
    # Every commented setting, uncommented, is accepted too and is the default it claims to be.
    settings = text.splitlines()[3:]
    lines = [
        line.replace("# ", "", 1) if line.lstrip().startswith("#") else line for line in settings
    ]
    assert lines != settings
    uncommented = "\n".join(line for line in lines if "system_prompt" not in line)
    assert _load(tmp_path, uncommented, name="all.yaml") == _load(tmp_path, text)
