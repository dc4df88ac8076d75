"""An adapter as it lies on disk, and what is known of its training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from trainer.adapter_identity import ADAPTER_WEIGHTS, adapter_digest
from trainer.checkpoints.contract import FILE_NAME as CONTRACT
from trainer.errors import ConfigError, TrainingFailed
from trainer.merge.naming import listed
from trainer.merge.quantized import Kind, Quantization
from trainer.merge.weight_files import WeightFile, open_weights
from trainer.trained_model import find_run, read_adapter_config, settings_of_run

_TYPES: dict[tuple[str, ...], tuple[type, ...]] = {
    ("r",): (int,),
    ("lora_alpha",): (int, float),
    ("bias", "base_model_name_or_path", "revision"): (str,),
    ("rank_pattern", "alpha_pattern"): (dict,),
    ("target_modules", "modules_to_save"): (str, list),
}


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
    _check_kind(folder, description)
    weights = open_weights(folder / ADAPTER_WEIGHTS)
    _check_finite(weights)
    return Adapter(
        folder=folder,
        description=description,
        weights=weights,
        digest=adapter_digest(folder, description),
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


def _check_kind(folder: Path, description: dict[str, Any]) -> None:
    """Raises: ConfigError for an adapter that is no LoRA adapter, or says impossible things."""
    kind = description.get("peft_type")
    if kind != "LORA" or description.get("alora_invocation_tokens"):
        raise ConfigError(
            f"{folder} is an adapter of kind {kind}",
            rule="LoRA adapters are merged, rsLoRA and DoRA among them",
            fix="use it beside its base with PEFT",
        )
    for names, types in _TYPES.items():
        for name in names:
            value = description.get(name)
            if value is not None and (not isinstance(value, types) or isinstance(value, bool)):
                raise ConfigError(
                    f"{folder}: {name} is {value!r} in adapter_config.json",
                    rule="an adapter folder is as save_pretrained wrote it",
                    fix="copy it again from where it was trained",
                )


def _trained_on(folder: Path) -> str | None:
    """A checkpoint carries its contract; adapter/ is in the folder that holds it."""
    for place in (folder, folder.parent):
        if (place / CONTRACT).is_file():
            try:
                digest: str | None = json.loads((place / CONTRACT).read_text(encoding="utf-8"))[
                    "base_model"
                ]["digest"]
            except (ValueError, KeyError, TypeError):  # damaged: nothing is known
                return None
            return digest
    return None


def _quantization(folder: Path) -> Quantization | None:
    model = settings_of_run(folder).get("model")
    if not isinstance(model, dict):
        return None
    kind: Kind = model.get("quantization", "none")
    if kind not in get_args(Kind):
        return None
    return Quantization(kind, is_double=model.get("double_quantization") is not False)
