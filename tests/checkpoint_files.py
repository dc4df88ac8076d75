"""Checkpoints for tests of what lies on disk: complete, small, and without tensors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from trainer.checkpoints.commit import begin, commit
from trainer.checkpoints.folder import Checkpoint
from trainer.checkpoints.state import RunState, write_state

FILES = {
    "adapter_config.json": b'{"r": 8}\n',
    "adapter_model.safetensors": bytes(range(256)) * 3,
    "contract.json": b'{"seed": 42}\n',
    "sharded/rank-0.bin": b"\1\2\3" * 40,
}

STATE = RunState(
    kind="portable",
    step=0,
    epoch=1.25,
    tokens=1000,
    training_seconds=9.5,
    loss_total=3.0,
    last_logged_step=0,
    scheduler_steps=0,
    loss_scale=None,
    evaluation_pending=False,
    best_step=None,
    callbacks={},
    world_size=2,
    engine="zero2",
    precision="fp32",
    saved=1_700_000_000.0,
)


def make_checkpoint(folder: Path, step: int, *, best_step: int | None = None) -> Checkpoint:
    """Write and commit a checkpoint as training does."""
    temporary = begin(folder, step)
    fill(temporary, step, best_step=best_step)
    return commit(temporary, folder, step)


def fill(temporary: Path, step: int, *, best_step: int | None = None) -> None:
    for name, content in FILES.items():
        (temporary / name).parent.mkdir(exist_ok=True)
        (temporary / name).write_bytes(content)
    write_state(temporary, dataclasses.replace(STATE, step=step, best_step=best_step))


def truncate(path: Path) -> None:
    """Take one byte off the end of a file."""
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
