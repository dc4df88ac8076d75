"""What run this is, from its config, data and base model: the contract its checkpoints carry."""

from __future__ import annotations

import hashlib
from importlib import metadata
from typing import Any

from trainer.base_identity import base_digest
from trainer.checkpoints.contract import Facts, make_contract
from trainer.config import Config
from trainer.data.store import PreparedData
from trainer.prepared_data import required_split
from trainer.schedule import BatchPlan
from trainer.tokenizer import load_training_tokenizer

_LIBRARIES = ("rankzero", "torch", "transformers", "peft", "accelerate", "deepspeed")


def describe_run(config: Config, data: PreparedData, plan: BatchPlan) -> dict[str, Any]:
    """Return the contract of this run."""
    template = load_training_tokenizer(config).tokenizer.chat_template
    return make_contract(
        config,
        Facts(
            data_fingerprint=data.fingerprint,
            num_examples=len(required_split(data, "train")),
            chat_template=hashlib.sha256(str(template).encode()).hexdigest(),
            base_model=base_digest(config.model.name, config.model.revision),
            global_batch_size=plan.global_batch_size,
            num_steps=plan.num_steps,
            warmup_steps=plan.warmup_steps,
            versions=_versions(),
        ),
    )


def _versions() -> dict[str, str]:
    installed = {}
    for name in _LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
