"""The shipped DeepSpeed configs, with sizes at which a tiny model is really cut up."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.deepspeed_config import find_deepspeed_config, load_deepspeed_config

# Elements. At the shipped sizes every tensor of a tiny model stays whole, in one bucket.
_STAGE_3 = {"stage3_param_persistence_threshold": 0, "sub_group_size": 10_000}
_BUCKET = 20_000


def write_deepspeed_config(path: Path, name: str) -> Path:
    """Write a shipped config with every threshold far below the tiny model's tensors."""
    settings = load_deepspeed_config(find_deepspeed_config(name))
    zero = settings["zero_optimization"]
    zero["reduce_bucket_size"] = _BUCKET
    if zero["stage"] == 3:
        zero.update(_STAGE_3)
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path
