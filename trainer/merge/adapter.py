"""An adapter as it lies on disk, and what is known of its training."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from trainer.checkpoints.contract import FILE_NAME as CONTRACT
from trainer.errors import TrainingFailed
from trainer.merge.naming import listed
from trainer.merge.quantized import Kind, Quantization
from trainer.merge.weight_files import WeightFile, open_weights
from trainer.trained_model import find_run, read_adapter_config, settings_of_run

_WEIGHTS = "adapter_model.safetensors"
_TOKENIZER_FILES = ("*token*", "vocab*", "merges.txt", "*.jinja")
_FILES = ("adapter_config.json", _WEIGHTS, *_TOKENIZER_FILES)
_BLOCK_BYTES = 2**22


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter."""

    folder: Path
    description: dict[str, Any]
    """adapter_config.json."""
    weights: WeightFile
    digest: str
    trained_on: str | None
    """Digest of the base, if its run is known."""
    has_run: bool
    """Whether it lies in its run."""
    quantization: Quantization | None
    """How its run stored the base; None as well when that is not known."""


def open_adapter(folder: Path) -> Adapter:
    """Read an adapter's description and table of contents, and what its run says.

    Raises: ConfigError, TrainingFailed for weights that are not finite.
    """
    description = read_adapter_config(folder)
    weights = open_weights(folder / _WEIGHTS)
    _check_finite(weights)
    return Adapter(
        folder=folder,
        description=description,
        weights=weights,
        digest=_digest(folder, description),
        trained_on=_trained_on(folder),
        has_run=find_run(folder) is not None,
        quantization=_quantization(folder),
    )


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


def _digest(folder: Path, description: dict[str, Any]) -> str:
    """Hash the weights, the description without the base's place, and the tokenizer beside it."""
    digest = hashlib.sha256()
    for path in sorted({file for kind in _FILES for file in folder.glob(kind)}):
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


def _trained_on(folder: Path) -> str | None:
    """A checkpoint carries its contract; adapter/ is in the folder that holds it."""
    for place in (folder, folder.parent):
        if (place / CONTRACT).is_file():
            contract: dict[str, Any] = json.loads((place / CONTRACT).read_text(encoding="utf-8"))
            base: dict[str, str | None] = contract.get("base_model") or {}
            return base.get("digest")
    return None


def _quantization(folder: Path) -> Quantization | None:
    model = settings_of_run(folder).get("model") or {}
    kind: Kind = model.get("quantization", "none")
    if kind not in get_args(Kind):
        return None
    return Quantization(kind, is_double=model.get("double_quantization") is not False)
