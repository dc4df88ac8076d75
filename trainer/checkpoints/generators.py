"""The state of every random number generator a rank draws from, as tensors."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch

_STATE_WORDS = 624  # of a Mersenne Twister


def generator_states() -> dict[str, torch.Tensor]:
    """Return the states of Python, NumPy, torch and this rank's GPU."""
    _, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    numpy_words = numpy["state"]["key"].tolist()
    states = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*numpy_words, numpy["state"]["pos"], numpy["has_gauss"]]),
        "numpy_gauss": torch.tensor([numpy["gauss"]], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_generators(states: Mapping[str, torch.Tensor]) -> None:
    """Put the generators where `generator_states` found them."""
    gauss = states["python_gauss"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), gauss[0] if gauss else None))
    *keys, position, has_gauss = states["numpy"].tolist()
    assert len(keys) == _STATE_WORDS
    cached = float(states["numpy_gauss"][0])
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def seed_generators(seed: int, step: int, rank: int) -> None:
    """Start the generators anew for a number of ranks that saved no state of their own."""
    drawn = np.random.SeedSequence([seed, step, rank]).generate_state(3)
    random.seed(int(drawn[0]))
    np.random.seed(int(drawn[1]))
    torch.manual_seed(int(drawn[2]))
