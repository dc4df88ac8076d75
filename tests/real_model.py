"""SmolLM2-135M, where `make demo` has put it: for what random weights cannot show."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The model's folder; RANKZERO_TEST_MODEL names another place."""
    place = os.environ.get("RANKZERO_TEST_MODEL", str(ROOT / "models" / "smollm2-135m-instruct"))
    folder = Path(place)
    if not (folder / "config.json").is_file():
        pytest.skip(f"{folder} is not there: `make demo` writes it, or set RANKZERO_TEST_MODEL")
    return folder.absolute()
