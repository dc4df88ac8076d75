"""Facts of the model a config trains: asked of a trainer process once, then kept on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

import click
from pydantic import ValidationError

from launcher.process_tree import ends_with_this_process
from trainer.cache_root import cache_root
from trainer.config import Config, to_json
from trainer.config_paths import with_absolute_paths
from trainer.errors import EnvironmentProblem, RankZeroError
from trainer.model_facts import Casting, ModelFacts
from trainer.model_source import check_model_folder

# Raise when the same model would give other facts than before.
_FACTS_VERSION = 2
_DECIDING_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Training:
    """How a model is trained, as far as its facts depend on it."""

    quantization: str
    precision: str
    device: str
    castings: tuple[Casting, ...]


def find_facts(config: Config, training: Training) -> ModelFacts:
    """Return the facts of `config.model`, measured now if they never were.

    Raises: RankZeroError with the exit code of the process that could not measure them.
    """
    check_model_folder(config.model.name)  # the process below takes seconds to say the same
    path = cache_root(config.data.cache_dir) / "facts" / f"{_key(config, training)}.json"
    try:
        return ModelFacts.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):  # not there yet, or of another version
        pass
    is_here = Path(config.model.name).expanduser().is_dir()
    doing = "measuring the model's" if is_here else "fetching the model's config, measuring its"
    click.echo(f"{doing} shapes and activations (once; kept for later)", err=True)
    facts = _measure(config, training)
    _keep(path, facts)
    return facts


def _key(config: Config, training: Training) -> str:
    """Hash what decides the facts. A Hub model counts by its id and revision."""
    model = config.model.model_dump(mode="json", exclude={"quantization", "attention"})
    description = Path(config.model.name) / "config.json"
    content = description.read_text(encoding="utf-8") if description.is_file() else None
    if content is not None:
        del model["name"]
    deciding = {
        "version": _FACTS_VERSION,
        "model": model,
        "config.json": content,
        "lora": config.lora.model_dump(mode="json"),
        "training": dataclasses.asdict(training),
        "packages": {name: _version(name) for name in _DECIDING_PACKAGES},
    }
    text = json.dumps(deciding, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _measure(config: Config, training: Training) -> ModelFacts:
    with tempfile.TemporaryDirectory(prefix="rankzero-") as folder:
        path = Path(folder) / "resolved.json"
        path.write_text(to_json(with_absolute_paths(config)), encoding="utf-8")
        command = [sys.executable, "-m", "trainer.shapes", "--config", str(path)]
        command += ["--set", f"model.quantization={training.quantization}"]
        command += ["--precision", training.precision, "--device", training.device]
        command += [word for casting in training.castings for word in ("--casting", casting)]
        # The model has no weights: threads would only get in the way of a training run beside it.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            preexec_fn=ends_with_this_process(),
        )
    if ended.returncode:
        raise _failure(ended)
    return ModelFacts.model_validate_json(ended.stdout)


def _failure(ended: subprocess.CompletedProcess[str]) -> RankZeroError:
    """Pass on what the process said; a traceback is a bug and stays one."""
    text = ended.stderr.strip()
    # Its libraries may have spoken before, as of each request to the Hub that is tried again.
    _, found, told = f"\n{text}".rpartition("\nerror: ")
    if found:
        error = RankZeroError(told)
    else:
        error = RankZeroError(
            f"the model's shapes could not be measured:\n{text[-2000:]}",
            rule="planning builds the model from its config.json, without weights",
            fix="see the last lines above; an architecture transformers lacks cannot be planned",
        )
    error.exit_code = ended.returncode if ended.returncode > 0 else EnvironmentProblem.exit_code
    return error


def _keep(path: Path, facts: ModelFacts) -> None:
    """Write the facts by rename; a cache that cannot be written costs time, not the plan."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(facts.model_dump_json(), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # as where the cache is no folder
            temporary.unlink()
