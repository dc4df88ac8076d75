"""What a merge starts from: the base's files, the adapter's, and which models they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, PreTrainedConfig

from trainer.base_identity import base_digest
from trainer.config_schema import BasePrecision
from trainer.errors import ConfigError
from trainer.merge.adapter import Adapter, open_adapter
from trainer.merge.meta_model import compute_dtype
from trainer.merge.quantized import Quantization
from trainer.merge.report import ORIGINAL
from trainer.merge.weight_files import WeightFile, open_weights, written_type
from trainer.model_card.base import LEGAL_FILES, published_name
from trainer.model_source import RECORDED_BASE, check_model_folder, explaining_load
from trainer.trained_model import run_trusts_code
from trainer.weight_paths import INDEX, KINDS, weight_paths

_ALL_BUT_WEIGHTS = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken")
_CARRIED = ("config.json", "generation_config.json", "*processor_config.json", *LEGAL_FILES)


@dataclass(frozen=True)
class MergeOptions:
    """How to merge, where there is a choice."""

    base: str | None = None
    """Instead of the one the first adapter names."""
    trust_remote_code: bool = False
    """Run the model's own code; a run that was told to may without it."""
    precision: BasePrecision = ORIGINAL
    quantization: Quantization | None = None
    """How training stored the base, where no run tells."""
    dtype: torch.dtype | None = None
    """Of the merged weights. Default: that of the base."""
    replace: bool = False
    """Whether an earlier merge may be replaced; anything else at the output never is."""
    requirements: Mapping[str, Any] = field(default_factory=dict)
    """What the gate measured, for merge.json."""


@dataclass(frozen=True)
class MergeJob:
    """One adapter and the base it goes into, all of it on this machine."""

    name: str
    """The base as the user or the adapter names it."""
    folder: Path
    """The base's files."""
    adapters: tuple[Adapter, ...]
    """In the order they are merged; each was trained on the result of those before."""
    trusted: bool
    """Whether the base's own code may run."""
    config: PreTrainedConfig
    files: tuple[WeightFile, ...]
    index: Path | None
    base_digest: str
    precision: BasePrecision
    """As asked for."""
    quantization: Quantization | None
    """How training stored the base, where that is known."""
    chosen_dtype: torch.dtype | None
    """Of the merged weights, where the user chose; else each has that of the base."""
    notes: tuple[str, ...]

    @property
    def dtype(self) -> torch.dtype:
        """What the merged model computes in."""
        return self.chosen_dtype or compute_dtype(self.config, self.files)

    @property
    def type_name(self) -> str:
        """That type, as config.json spells it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def identity(self) -> dict[str, str]:
        """What must be the same for two merges to give the same model."""
        return {
            "base": self.base_digest,
            "carried": self._carried_digest(),
            "adapters": ",".join(adapter.digest for adapter in self.adapters),
            "precision": self.precision,
            "quantization": "" if self.precision == ORIGINAL else str(self.quantization),
            "dtype": self.type_name if self.chosen_dtype else "as stored",
        }

    def _carried_digest(self) -> str:
        digest = hashlib.sha256()
        for file in self.carried_files():
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()

    @property
    def public_name(self) -> str:
        """The base's name without directories."""
        return published_name(self.name, self.folder)

    @property
    def num_bytes(self) -> int:
        """Size of the base's weights."""
        return sum(file.num_bytes for file in self.files)

    @property
    def output_bytes(self) -> int:
        """Size of the merged weights."""
        tensors = (tensor for file in self.files for tensor in file.tensors)
        return sum(
            tensor.num_bytes
            // tensor.dtype.itemsize
            * written_type(tensor, self.chosen_dtype).itemsize
            for tensor in tensors
        )

    def carried_files(self) -> list[Path]:
        """List the base's files that go into the merged folder as they are."""
        kinds = (*_CARRIED, "*.py") if self.trusted else _CARRIED
        return sorted({file for kind in kinds for file in self.folder.glob(kind) if file.is_file()})


def find_job(folders: Sequence[Path], options: MergeOptions) -> MergeJob:
    """Find and open everything a merge needs, and check what can be checked at once.

    Raises: ConfigError, EnvironmentProblem, TrainingFailed for an adapter that is not finite.
    """
    base = options.base
    adapters = tuple(open_adapter(folder) for folder in folders)
    _check_different(adapters)
    first = adapters[0]
    name = base or first.description.get("base_model_name_or_path")
    if not name:
        raise ConfigError(
            f"the adapter {first.folder} does not say which base model it belongs to",
            rule="adapter_config.json names it in base_model_name_or_path",
            fix="give it with --base",
        )
    quantization = options.quantization or first.quantization
    if first.quantization and first.quantization.kind == getattr(quantization, "kind", None):
        quantization = first.quantization  # the run knows more than the kind
    if options.precision != ORIGINAL:
        _check_precision(adapters, options.precision, quantization)
    revision = None if base else first.description.get("revision")
    field = "--base" if base else RECORDED_BASE
    # A run's trust is in its own base, not in another one.
    trusted = options.trust_remote_code or (base is None and run_trusts_code(first.folder))
    check_model_folder(name, field)
    folder = _fetch(name, revision, field)
    with explaining_load(name, revision, field):
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trusted)
    paths, index = weight_paths(folder, name, field)
    files = tuple(open_weights(path) for path in paths)
    _check_unquantised(files, config, name, field)
    digest = base_digest(str(folder)) or ""
    return MergeJob(
        name=name,
        folder=folder,
        adapters=adapters,
        trusted=trusted,
        config=config,
        files=files,
        index=index,
        base_digest=digest,
        precision=options.precision,
        quantization=quantization,
        chosen_dtype=options.dtype,
        notes=(
            *_check_base(name, digest, first, is_chosen=base is not None),
            *filter(None, (_note_order(adapter, digest) for adapter in adapters[1:])),
        ),
    )


def _check_unquantised(
    files: Sequence[WeightFile], config: PreTrainedConfig, name: str, field: str
) -> None:
    is_small = any(
        t.dtype.itemsize == 1 and t.dtype.is_floating_point for f in files for t in f.tensors
    )
    if is_small or getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            f"{field}: the weights of {name} are stored quantised",
            rule="an adapter is merged into 16 or 32-bit weights",
            fix="give the unquantised model with --base",
        )


def _check_different(adapters: Sequence[Adapter]) -> None:
    digests = [adapter.digest for adapter in adapters]
    twice = [adapter for adapter in adapters if digests.count(adapter.digest) > 1]
    if twice:
        raise ConfigError(
            f"{twice[0].folder} is given twice",
            rule="each adapter goes into the weights once",
            fix="name every adapter once",
        )


def _note_order(adapter: Adapter, digest: str) -> str:
    """Return the note on a later adapter that was trained on the base itself; else nothing."""
    if adapter.trained_on != digest:
        return ""
    return f"{adapter.folder.name} was trained on the base, not on the merge of those before it"


def _check_precision(
    adapters: Sequence[Adapter], precision: BasePrecision, quantization: Quantization | None
) -> None:
    if quantization is None and not adapters[0].has_run:
        raise ConfigError(
            f"--base-precision {precision}: how training stored the base of "
            f"{adapters[0].folder} is not known",
            rule="dequantised weights are those an adapter was trained on in 4 or 8 bits",
            fix="leave --base-precision out, or say how with --quantization nf4, fp4 or int8",
        )
    if len(adapters) > 1:
        raise ConfigError(
            f"--base-precision {precision} with {len(adapters)} adapters",
            rule="only the first of several adapters was trained on the base itself",
            fix="merge the first one by itself, then the others into the result with --base",
        )


def _check_base(name: str, digest: str, adapter: Adapter, *, is_chosen: bool) -> tuple[str, ...]:
    """Compare the base with the one the run recorded; returns a note on one chosen by the user."""
    if adapter.trained_on in (None, digest):
        return ()
    if is_chosen:
        return ("the adapter was trained on other files of the base",)
    raise ConfigError(
        f"the weights of {name} are not those the adapter was trained on",
        rule="an adapter is merged into the base model it was trained on; its run recorded a "
        "digest of the files",
        fix="give that model with --base, or this one on purpose",
    )


def _fetch(name: str, revision: str | None, field: str) -> Path:
    """Return the base's folder; a Hub model is downloaded, in one of the forms it is stored in."""
    local = Path(name).expanduser()
    if local.is_dir():
        return local.resolve()
    folder = local
    for kind in KINDS:
        stem, _, suffix = kind.partition(".")
        patterns = [*_ALL_BUT_WEIGHTS, *LEGAL_FILES, "README.md", f"{stem}*.{suffix}"]
        with explaining_load(name, revision, field):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        if any((folder / found).exists() for found in (kind, kind + INDEX)):
            break
    return folder
