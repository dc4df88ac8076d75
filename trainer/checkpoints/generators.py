"""The state of every random number generator a rank draws from."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

_STATE_WORDS = 624  # of a Mersenne Twister


class GeneratorStates(NamedTuple):
    """As each library gives it: taken at every step, so it must cost microseconds."""

    python: tuple[Any, ...]
    numpy: dict[str, Any]
    cpu: torch.Tensor
    cuda: torch.Tensor | None

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return the same as tensors, for a file."""
        _, words, gauss = self.python
        numpy_words = self.numpy["state"]["key"].tolist()
        tensors = {
            "python": torch.tensor(words, dtype=torch.int64),
            "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
            "numpy": torch.tensor(
                [*numpy_words, self.numpy["state"]["pos"], self.numpy["has_gauss"]]
            ),
            "numpy_gauss": torch.tensor([self.numpy["gauss"]], dtype=torch.float64),
            "torch": self.cpu,
        }
        return tensors if self.cuda is None else {**tensors, "cuda": self.cuda}


def generator_states() -> GeneratorStates:
    """Return the states of Python, NumPy, torch and this rank's GPU."""
    return GeneratorStates(
        random.getstate(),
        np.random.get_state(legacy=False),
        torch.get_rng_state(),
        torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    )


def set_generators(tensors: Mapping[str, torch.Tensor]) -> None:
    """Put the generators where they were when `to_tensors` gave this."""
    gauss = tensors["python_gauss"].tolist()
    random.setstate((3, tuple(tensors["python"].tolist()), gauss[0] if gauss else None))
    *keys, position, has_gauss = tensors["numpy"].tolist()
    assert len(keys) == _STATE_WORDS
    cached = float(tensors["numpy_gauss"][0])
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


def seed_generators(seed: int, step: int, rank: int) -> None:
    """Start the generators anew for a number of ranks that saved no state of their own."""
    drawn = np.random.SeedSequence([seed, step, rank]).generate_state(3)
    random.seed(int(drawn[0]))
    np.random.seed(int(drawn[1]))
    torch.manual_seed(int(drawn[2]))
