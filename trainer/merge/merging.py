"""Fold a LoRA adapter into its base model, and prove that the result is what was trained."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from trainer.errors import ConfigError, Interrupted
from trainer.merge.in_memory import merge_in_memory
from trainer.merge.job import MergeJob, MergeOptions, find_job
from trainer.merge.meta_model import NotStreamable
from trainer.merge.partial import Partial, check_disk, explaining_writes, open_partial
from trainer.merge.progress import MergeProgress
from trainer.merge.report import MergeReport, read_report, write_report
from trainer.merge.streamed import StreamedMerge
from trainer.model_card import write_model_card
from trainer.tokenizer import find_tokenizer

_SPARE_BYTES = 64 * 2**20  # tokenizer, configs, headers


def merge_adapter(
    adapters: Path | Sequence[Path], output: Path, options: MergeOptions | None = None
) -> MergeReport:
    """Write base + adapter as one plain model folder at `output`.

    Of several adapters, each was trained on the merge of those before. The base stays in the 16 or
    32-bit type it is stored in. Nothing appears at `output` until everything was written and
    checked. If this very merge is there already, it is left as it is.

    Ranks: rank 0 only.
    Raises: ConfigError, EnvironmentProblem (disk), TrainingFailed when a check does not hold.
    """
    options = options or MergeOptions()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    done = read_report(output) if os.path.lexists(output) else None
    if done is None:
        _refuse_existing(output)
    job = find_job([adapters] if isinstance(adapters, Path) else adapters, options)
    if done is not None:
        if done.identity == job.identity:
            console.print(f"{output} is this merge already: nothing to do", markup=False)
            return done
        if not options.replace:
            _refuse_existing(output)
    _check_space(job, output)
    try:
        with open_partial(output, job.identity) as partial:
            return _merge(job, partial, output, options, console)
    except (KeyboardInterrupt, Interrupted):
        console.print("what is finished stays: the same command goes on from there", markup=False)
        raise


def _merge(
    job: MergeJob,
    partial: Partial,
    output: Path,
    options: MergeOptions,
    console: Console,
) -> MergeReport:
    last = job.adapters[-1]
    tokenizer = find_tokenizer(last.folder, str(job.folder), trust_remote_code=job.trusted)
    with explaining_writes(output):
        try:
            outcome = StreamedMerge(job, tokenizer).run(partial, MergeProgress(console))
            how = "streamed"
        except NotStreamable as reason:
            how = f"in memory: {reason}"
            console.print(f"merging {how}", markup=False)
            partial.clear()
            outcome = merge_in_memory(job, partial.path, tokenizer)
    notes = (*job.notes, *outcome.notes)
    for note in notes:
        console.print(f"warning: {note}", markup=False)
    report = MergeReport(
        base=job.public_name,
        adapters=tuple(_public(adapter.folder) for adapter in job.adapters),
        dtype=job.identity["dtype"],
        targets=outcome.targets,
        num_adapter_tensors=sum(len(adapter.weights.tensors) for adapter in job.adapters),
        max_logit_difference=outcome.max_logit_difference,
        max_logit=outcome.max_logit,
        how=how,
        identity=job.identity,
        base_precision=outcome.base_precision,
        quantization=job.quantization.kind if job.quantization else None,
        distances=outcome.distances,
        requirements=dict(options.requirements),
        notes=notes,
    )
    with explaining_writes(output):
        for file in job.carried_files():
            # What save_pretrained wrote belongs to the weights beside it.
            if not (partial.path / file.name).exists():
                shutil.copyfile(file, partial.path / file.name)
        if job.chosen_dtype is not None:
            _write_dtype(partial.path / "config.json", job.identity["dtype"])
        tokenizer.save_pretrained(partial.path)
        write_model_card(
            partial.path,
            base=job.name,
            base_folder=job.folder,
            adapters=[adapter.folder for adapter in job.adapters],
            report=dataclasses.asdict(report),
        )
        report = write_report(partial.path, report)
        partial.publish(output, replace=options.replace)
    return report


def _write_dtype(path: Path, dtype: str) -> None:
    """Let config.json, and what is nested in it, name the type of the weights."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name in ("dtype", "torch_dtype"):
            if name in part:
                part[name] = dtype
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _public(adapter: Path) -> str:
    """Name an adapter by its run and its place in it: merge.json may be published."""
    return "/".join(adapter.absolute().parts[-2:])


def _check_space(job: MergeJob, output: Path) -> None:
    """Raises: EnvironmentProblem; what an interrupted merge left counts as free."""
    left = output.with_name(f".{output.name}.partial")
    there = sum(file.stat().st_size for file in left.glob("*")) if left.is_dir() else 0
    check_disk(output, _SPARE_BYTES + job.output_bytes - there)


def _refuse_existing(output: Path) -> None:
    if os.path.lexists(output):
        raise ConfigError(
            f"{output} exists",
            rule="a merge never overwrites",
            fix="remove it, or choose another --output",
        )
