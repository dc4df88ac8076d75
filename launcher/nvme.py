"""The folder on NVMe that a run offloads to: its own, and gone when it ends."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from launcher.planning import PlannedRun
from launcher.strategy import Zero
from trainer.deepspeed_config import (
    completed,
    find_deepspeed_config,
    load_deepspeed_config,
    with_nvme,
)


@contextmanager
def nvme_folder(planned: PlannedRun) -> Iterator[PlannedRun]:
    """Yield a run that offloads to NVMe with a DeepSpeed config that names its folder there.

    Any other is yielded as it is.
    """
    own, nvme = planned.config.training.deepspeed_config, planned.profile.nvme
    settings = {} if own is None else load_deepspeed_config(find_deepspeed_config(own))
    zero = Zero.read(settings)
    if nvme is None or "nvme" not in (zero.parameters_on, zero.optimizer_on):
        yield planned
        return
    folder = Path(nvme.path) / f"rankzero-{uuid.uuid4().hex}"
    folder.mkdir(parents=True, exist_ok=True)
    rendered = folder / "deepspeed.json"
    content = with_nvme(
        completed(settings),
        folder,
        largest_parameter=planned.largest_parameter,
        world_size=planned.plan.world_size,
    )
    rendered.write_text(json.dumps(content, indent=2), encoding="utf-8")
    training = planned.config.training.model_copy(update={"deepspeed_config": str(rendered)})
    try:
        yield replace(planned, config=planned.config.model_copy(update={"training": training}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
