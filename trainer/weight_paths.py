"""Which files of a folder hold a model's weights. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.errors import ConfigError
from trainer.merge.naming import listed

INDEX = ".index.json"
# As transformers looks for them, the first found wins.
KINDS = ("model.safetensors", "pytorch_model.bin")


def weight_paths(folder: Path, name: str, field: str) -> tuple[list[Path], Path | None]:
    """Return a model's weight files and, where there are several, their index.

    Raises: ConfigError naming `field` when they are not all there.
    """
    for kind in KINDS:
        if (folder / kind).is_file():
            return [folder / kind], None
        index = folder / (kind + INDEX)
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
        if not names:
            raise ValueError("it names no file")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
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
