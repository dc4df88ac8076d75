"""Rules about the tree itself: who imports whom, and that every data file can be read."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from launcher import __version__

ROOT = Path(__file__).parents[2]
# What the launcher may use of the trainer: modules that load no torch.
SHARED = {
    "trainer.attempt",
    "trainer.cache_root",
    "trainer.cgroup",
    "trainer.checkpoints.commit",
    "trainer.checkpoints.contract",
    "trainer.checkpoints.folder",
    "trainer.checkpoints.manifest",
    "trainer.checkpoints.state",
    "trainer.config",
    "trainer.config_checks",
    "trainer.config_dialects",
    "trainer.config_file",
    "trainer.config_paths",
    "trainer.config_problems",
    "trainer.config_types",
    "trainer.data.sources",
    "trainer.deepspeed_config",
    "trainer.errors",
    "trainer.lora_presets",
    "trainer.model_facts",
    "trainer.model_source",
    "trainer.report.page",
    "trainer.report.read",
    "trainer.report.values",
    "trainer.run_check",
    "trainer.run_directory",
    "trainer.shipped",
    "trainer.status",
}
HEAVY = ("torch", "transformers", "datasets", "peft", "deepspeed", "accelerate", "numpy")
SKIPPED_FOLDERS = {".git", ".venv", "venv", "node_modules", "build", "dist", "models", "runs"}


def _imports(package: str) -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{path}: relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                is_package = (ROOT / node.module.replace(".", "/")).is_dir()
                yield from ((path, name) for name in (names if is_package else [node.module]))


def test_the_launcher_takes_only_torch_free_modules_of_the_trainer() -> None:
    used = {name for _, name in _imports("launcher") if name.split(".")[0] == "trainer"}
    assert used
    assert used <= SHARED


def test_the_launcher_names_no_heavy_library() -> None:
    assert [(p, name) for p, name in _imports("launcher") if name.split(".")[0] in HEAVY] == []


def test_the_trainer_never_imports_the_launcher() -> None:
    found = list(_imports("trainer"))
    assert any(name == "trainer.errors" for _, name in found)
    assert [(p, name) for p, name in found if name.split(".")[0] == "launcher"] == []


def _loaded_by(*arguments: str) -> set[str]:
    command = [sys.executable, "-X", "importtime", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


def test_help_loads_nothing_heavy() -> None:
    loaded = _loaded_by("-m", "launcher", "--help")
    assert "click" in loaded
    assert loaded.isdisjoint({*HEAVY, "kubernetes", "pydantic", "yaml"})


def test_a_config_loads_nothing_heavy() -> None:
    shared = [name for name in sorted(SHARED) if (ROOT / f"{name.replace('.', '/')}.py").exists()]
    verbs = sorted(path.stem for path in (ROOT / "launcher" / "commands").glob("[a-z]*.py"))
    modules = [*shared, *(f"launcher.commands.{verb}" for verb in verbs)]
    loaded = _loaded_by("-c", f"import {', '.join(modules)}")
    assert "pydantic" in loaded
    assert loaded.isdisjoint({*HEAVY, "kubernetes"})


def test_the_version_is_said_once_and_the_same() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{__version__}"' in project.splitlines()


def _data_files() -> list[Path]:
    return sorted(
        path
        for path in ROOT.rglob("*")
        if path.suffix in (".json", ".yaml", ".yml", ".jsonl")
        and not SKIPPED_FOLDERS.intersection(path.relative_to(ROOT).parts)
        and not any(part.startswith(".") for part in path.relative_to(ROOT).parts[:-1])
    )


@pytest.mark.parametrize("path", _data_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_data_file_can_be_read(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        assert [json.loads(line) for line in text.splitlines() if line]
    elif path.suffix == ".json":
        json.loads(text)
    else:
        assert list(yaml.safe_load_all(text))
