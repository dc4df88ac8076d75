"""Which adapter this is, by its weights, its description and the tokenizer beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_TOKENIZER_FILES = ("*token*", "vocab*", "merges.txt", "*.jinja")
_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *_TOKENIZER_FILES)
_PLACES = ("base_model_name_or_path", "revision")
_BLOCK_BYTES = 2**22


def adapter_digest(folder: Path, description: dict[str, Any]) -> str:
    """Hash an adapter; where its base lies does not count.

    description: what adapter_config.json says.
    """
    digest = hashlib.sha256()
    for path in sorted({file for kind in _FILES for file in folder.glob(kind)}):
        digest.update(path.name.encode() + b"\0")
        if path.name == ADAPTER_CONFIG:
            kept = {key: value for key, value in description.items() if key not in _PLACES}
            digest.update(json.dumps(kept, sort_keys=True).encode())
            continue
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
