"""Where everything that is kept between runs lives. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root(setting: str | None = None) -> Path:
    """Return `data.cache_dir`, else $RANKZERO_CACHE, else ~/.cache/rankzero."""
    root = setting or os.environ.get("RANKZERO_CACHE") or "~/.cache/rankzero"
    return Path(root).expanduser().resolve()
