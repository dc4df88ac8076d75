"""NEFTune noise: the size an example would get alone, wherever it is packed."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.tiny import make_model_folder
from trainer.neftune import EmbeddingNoise


def test_noise_follows_each_examples_own_length(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_model_folder(tmp_path / "model"))
    embeddings = model.get_input_embeddings()
    ids = torch.randint(500, (1, 110))
    clean = embeddings(ids)
    noise = EmbeddingNoise(model, alpha=5.0)
    noise.follow(torch.cat([torch.arange(100), torch.arange(10)])[None])
    model.train()
    difference = (embeddings(ids) - clean).abs()[0]
    for rows, length in ((difference[:100], 100), (difference[100:], 10)):
        bound = 5.0 / math.sqrt(length * 32)
        assert 0.9 * bound < float(rows.max()) <= bound * (1 + 1e-5)
    model.eval()
    torch.testing.assert_close(embeddings(ids), clean)
