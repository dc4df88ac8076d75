"""How a rank comes to its data: prepared before it started, or by the first rank of its node."""

from __future__ import annotations

import json
import time
from pathlib import Path

from trainer.config import Config
from trainer.data.cache import is_complete
from trainer.data.store import SPLITS, PreparedData, PreparedSplit, SplitName, load_prepared
from trainer.errors import DataError, TrainingFailed
from trainer.prepare import find_prepared, prepare, prepare_entry
from trainer.run_directory import RunDirectory
from trainer.world import World

_LONGEST_PAUSE_SECONDS = 5.0


def prepared_for_rank(config: Config, world: World, directory: RunDirectory) -> PreparedData:
    """Open the prepared data; without any, the first rank of each node makes it.

    The others wait on the file system: no process group exists yet, so no collective can time out.
    Raises: what preparing raises; TrainingFailed on a rank whose data another rank failed to make.
    """
    if world.is_first_on_node:
        return load_prepared(prepare(config, show_progress=world.is_rank_zero))
    return load_prepared(_wait_for_entry(config, directory))


def _wait_for_entry(config: Config, directory: RunDirectory) -> Path:
    started, pause = time.time(), 0.1
    while (entry := find_prepared(config)) is None:
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        status = directory.read_status()
        # An older failure is another start's: such a directory may be used again.
        if status.get("state") == "failed" and status["ended"] > started:
            raise TrainingFailed(
                f"rank {status.get('rank')} failed to prepare the data",
                fix=f"see {directory.status}",
            )
    return entry


def prepared_by_run(config: Config, directory: RunDirectory) -> PreparedData:
    """Open the data a finished run was trained with; nothing is written into the run.

    Raises: DataError when the cache has lost it and the sources no longer give the same.
    """
    report = json.loads(directory.data_report.read_text(encoding="utf-8"))
    entry = Path(report["cache_entry"])
    if not is_complete(entry):
        entry = prepare_entry(config)
    data = load_prepared(entry)
    if data.fingerprint != report["fingerprint"]:
        raise DataError(
            f"the data of {directory.path} has changed since it was trained "
            f"({report['fingerprint'][:8]} then, {data.fingerprint[:8]} now)",
            rule="a run is measured on the rows that were held out from it",
            fix="restore the files named in its resolved.json, and its tokenizer",
        )
    return data


def required_split(data: PreparedData, name: SplitName) -> PreparedSplit:
    """Return a split that must be there. Raises: DataError when it is empty."""
    split = data.split(name)
    if split is None:
        raise DataError(
            f"the {name} split is empty",
            rule="this needs at least one example",
            fix=f"set data.{name}" + ("" if name == "train" else f", or data.{name}_size"),
        )
    return split


def longest_example(data: PreparedData) -> int:
    """Tokens of the longest example of any split."""
    splits = [split for name in SPLITS if (split := data.split(name)) is not None]
    return max(int(split.lengths.max()) for split in splits)


def counts_line(data: PreparedData) -> str:
    """`data: 720 train / 80 validation / 80 test examples`."""
    sizes = [(len(split), name) for name in SPLITS if (split := data.split(name)) is not None]
    return "data: " + " / ".join(f"{size} {name}" for size, name in sizes) + " examples"
