"""What a merge starts from: the base's files, the adapter's, and which models they are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoConfig, PreTrainedConfig

from trainer.base_identity import base_digest
from trainer.errors import ConfigError, TrainingFailed
from trainer.merge.naming import listed
from trainer.merge.report import identity
from trainer.merge.weight_files import WeightFile, open_weights
from trainer.model_source import RECORDED_BASE, check_model_folder, explaining_load
from trainer.trained_model import read_adapter_config, run_trusts_code

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_INDEX = ".index.json"
_ALL_BUT_WEIGHTS = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken")
_LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_CARRIED = ("config.json", "generation_config.json", "*processor_config.json", *_LEGAL)
# As transformers looks for them, the first found wins.
_KINDS = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER_FILES = ("*token*", "vocab*", "merges.txt", "*.jinja")
_ADAPTER_FILES = ("adapter_config.json", ADAPTER_WEIGHTS, *_TOKENIZER_FILES)
_BLOCK_BYTES = 2**22


@dataclass(frozen=True)
class MergeJob:
    """One adapter and the base it goes into, all of it on this machine."""

    name: str
    """The base as the user or the adapter names it."""
    folder: Path
    """The base's files."""
    adapter: Path
    trusted: bool
    """Whether the base's own code may run."""
    config: PreTrainedConfig
    files: tuple[WeightFile, ...]
    index: Path | None
    weights: WeightFile
    """The adapter's."""
    base_digest: str
    adapter_digest: str

    @property
    def identity(self) -> dict[str, str]:
        return identity(self.base_digest, self.adapter_digest)

    def carried_files(self) -> list[Path]:
        """List the base's files that go into the merged folder as they are."""
        kinds = (*_CARRIED, "*.py") if self.trusted else _CARRIED
        return sorted({file for kind in kinds for file in self.folder.glob(kind) if file.is_file()})


def find_job(adapter: Path, base: str | None, *, trust_remote_code: bool) -> MergeJob:
    """Find and open everything a merge needs, and check what can be checked at once.

    Raises: ConfigError, EnvironmentProblem, TrainingFailed for an adapter that is not finite.
    """
    description = read_adapter_config(adapter)
    name = base or description.get("base_model_name_or_path")
    if not name:
        raise ConfigError(
            f"the adapter {adapter} does not say which base model it belongs to",
            rule="adapter_config.json names it in base_model_name_or_path",
            fix="give it with --base",
        )
    revision = None if base else description.get("revision")
    field = "--base" if base else RECORDED_BASE
    # A run's trust is in its own base, not in another one.
    trusted = trust_remote_code or (base is None and run_trusts_code(adapter))
    check_model_folder(name, field)
    folder = _fetch(name, revision, field)
    with explaining_load(name, revision, field):
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trusted)
    if hasattr(config, "quantization_config"):
        raise ConfigError(
            f"{field}: the weights of {name} are stored quantised",
            rule="an adapter is merged into 16 or 32-bit weights",
            fix="give the unquantised model with --base",
        )
    paths, index = _weight_paths(folder, name, field)
    weights = open_weights(adapter / ADAPTER_WEIGHTS)
    _check_finite(weights)
    return MergeJob(
        name=name,
        folder=folder,
        adapter=adapter,
        trusted=trusted,
        config=config,
        files=tuple(open_weights(path) for path in paths),
        index=index,
        weights=weights,
        base_digest=base_digest(str(folder)) or "",
        adapter_digest=_digest_adapter(adapter, description),
    )


def _fetch(name: str, revision: str | None, field: str) -> Path:
    """Return the base's folder; a Hub model is downloaded, in one of the forms it is stored in."""
    local = Path(name).expanduser()
    if local.is_dir():
        return local.resolve()
    folder = local
    for kind in _KINDS:
        stem, _, suffix = kind.partition(".")
        patterns = [*_ALL_BUT_WEIGHTS, *_LEGAL, f"{stem}*.{suffix}"]
        with explaining_load(name, revision, field):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        if any((folder / found).exists() for found in (kind, kind + _INDEX)):
            break
    return folder


def _weight_paths(folder: Path, name: str, field: str) -> tuple[list[Path], Path | None]:
    for kind in _KINDS:
        if (folder / kind).is_file():
            return [folder / kind], None
        index = folder / (kind + _INDEX)
        if index.is_file():
            return _sharded(index), index
    raise ConfigError(
        f"{field}: {name} holds no weights",
        rule="a base model has model.safetensors or pytorch_model.bin, or their shards and index",
        fix="give the folder written by save_pretrained, or a Hub snapshot",
    )


def _sharded(index: Path) -> list[Path]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{index} is damaged: {error}",
            rule="an index says which file holds which weight",
            fix="copy or download it again",
        ) from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ConfigError(
            f"{index.parent} lacks {listed(missing)}",
            rule=f"every file named in {index.name} is there",
            fix="copy or download the model again",
        )
    return [index.parent / name for name in names]


def _check_finite(weights: WeightFile) -> None:
    wrong = [
        tensor.name
        for tensor in weights.tensors
        if not all(tensor.read(*block).isfinite().all() for block in tensor.blocks())
    ]
    if wrong:
        raise TrainingFailed(
            f"{len(wrong)} adapter tensors are not finite: {listed(wrong)}",
            rule="every weight of an adapter is a number",
            fix="merge an earlier checkpoint: RUN/checkpoints/step-N",
        )


def _digest_adapter(adapter: Path, description: dict[str, Any]) -> str:
    """Hash the weights, the description without the base's place, and the tokenizer beside it."""
    digest = hashlib.sha256()
    for path in sorted({file for kind in _ADAPTER_FILES for file in adapter.glob(kind)}):
        digest.update(path.name.encode() + b"\0")
        if path.name == "adapter_config.json":
            places = ("base_model_name_or_path", "revision")
            kept = {key: value for key, value in description.items() if key not in places}
            digest.update(json.dumps(kept, sort_keys=True).encode())
            continue
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
