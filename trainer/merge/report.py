"""merge.json: what was merged with what, how, and the proof; and whether an output is whole."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.config_schema import BasePrecision
from trainer.run_directory import write_json

FILE_NAME = "merge.json"
NOT_COUNTED = (FILE_NAME, "README.md", "progress.json")
"""The model card may be edited."""
ORIGINAL: BasePrecision = "original"
DEQUANTIZED: BasePrecision = "dequantized"


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """What merge.json says."""

    base: str
    adapters: tuple[str, ...]
    """Names without directories, as of the base: this file is published with the model."""
    dtype: str
    targets: tuple[str, ...]
    """Names of the parameters the merge changes."""
    num_adapter_tensors: int
    max_logit_difference: float
    """Largest |merged - (base + adapter)| over the sample prompts, in logits."""
    max_logit: float
    """Largest logit seen, to judge the difference by."""
    how: str
    """"streamed", or "in memory: " and the reason."""
    identity: dict[str, str]
    """What must be the same for two merges to give the same weights."""
    base_precision: BasePrecision
    """What was merged into; never auto."""
    quantization: str | None = None
    """How training stored the base."""
    distances: dict[str, float] | None = None
    """By base precision, how far logits are from those of the adapter on the quantised base it was
    trained on, as root mean square: of this model, and of base + adapter in the other precision."""
    requirements: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of merge.require: what was asked for and what was measured."""
    notes: tuple[str, ...] = ()
    files: dict[str, int] = dataclasses.field(default_factory=dict)
    """Size in bytes of every file beside merge.json and README.md."""
    peak_memory_bytes: int = 0
    """Largest resident memory of the process that merged."""


def write_report(folder: Path, report: MergeReport) -> MergeReport:
    """Complete the report with what is in the folder, and write it there. Raises: OSError."""
    sizes = {
        file.name: file.stat().st_size
        for file in sorted(folder.iterdir())
        if file.name not in NOT_COUNTED
    }
    report = dataclasses.replace(report, files=sizes, peak_memory_bytes=peak_memory_bytes())
    write_json(folder / FILE_NAME, dataclasses.asdict(report))
    return report


def read_report(folder: Path) -> MergeReport | None:
    """Read the report of a finished output whose files are all there; None for anything else."""
    try:
        values: dict[str, Any] = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        lists = {name: tuple(values[name]) for name in ("adapters", "targets", "notes")}
        report = MergeReport(**{**values, **lists})
        whole = _are_there(folder, report.files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return report if whole else None


def _are_there(folder: Path, sizes: Mapping[str, int]) -> bool:
    return bool(sizes) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in sizes.items()
    )


def peak_memory_bytes() -> int:
    """Read this process's largest resident memory.

    Source: proc(5), VmHWM in kB. Not getrusage on Linux: its maximum begins with what the parent
    held when it started this process, such as a trainer's. Elsewhere: bytes on macOS.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
        if peaks:
            return peaks[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
