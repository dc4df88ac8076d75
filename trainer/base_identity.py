"""Which base model this is, by its weights rather than by its path."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

_NUM_SAMPLES = 64
_SAMPLE_BYTES = 1 << 14
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")


def base_digest(name: str, revision: str | None = None) -> str | None:
    """Hash samples of a model's weight files; None when none of them is on this machine.

    Size, both ends and 64 places between of each file: 1 MiB read where all of it would take
    minutes. Names do not count, so a moved or renamed folder is the same model.
    """
    folder = _folder(name, revision)
    files = [] if folder is None else sorted(p for kind in _WEIGHTS for p in folder.glob(kind))
    if not files:
        return None
    return hashlib.sha256(b"".join(sorted(_sample(file) for file in files))).hexdigest()


def _folder(name: str, revision: str | None) -> Path | None:
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _sample(file: Path) -> bytes:
    hasher = hashlib.sha256()
    with file.open("rb") as stream:
        size = stream.seek(0, 2)
        hasher.update(str(size).encode())
        for number in range(_NUM_SAMPLES + 1):
            stream.seek(max(0, size - _SAMPLE_BYTES) * number // _NUM_SAMPLES)
            hasher.update(stream.read(_SAMPLE_BYTES))
    return hasher.digest()
