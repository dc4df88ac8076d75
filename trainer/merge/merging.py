"""Fold a LoRA adapter into its base model, and prove that the result is what was trained."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from trainer.errors import ConfigError, Interrupted
from trainer.merge.in_memory import merge_in_memory
from trainer.merge.job import MergeJob, MergeOptions, find_job
from trainer.merge.meta_model import NotStreamable
from trainer.merge.output import Output, check_disk
from trainer.merge.partial import Partial, explaining_writes, open_partial
from trainer.merge.progress import MergeProgress
from trainer.merge.report import MergeReport, write_report
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
    place = Output.find(output)
    job = find_job([adapters] if isinstance(adapters, Path) else adapters, options)
    _check_apart(job, place.path)
    if place.done is not None and place.done.identity == job.identity:
        console.print(f"{output} is this merge already: nothing to do", markup=False)
        return _with_requirements(place.path, place.done, options.requirements)
    place.check_replaceable(replace=options.replace)
    _check_space(job, place.path)
    try:
        with open_partial(place.path, job.identity) as partial:
            return _merge(job, partial, place, options, console)
    except (KeyboardInterrupt, Interrupted):
        console.print("what is finished stays: the same command goes on from there", markup=False)
        raise


def _merge(
    job: MergeJob,
    partial: Partial,
    place: Output,
    options: MergeOptions,
    console: Console,
) -> MergeReport:
    last = job.adapters[-1]
    tokenizer = find_tokenizer(last.folder, str(job.folder), trust_remote_code=job.trusted)
    with explaining_writes(place.path):
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
        dtype=job.type_name,
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
    with explaining_writes(place.path):
        report = _write_beside_the_weights(partial.path, job, tokenizer, report)
        partial.seal()
        place.publish(partial.path)
    return report


def _write_beside_the_weights(
    folder: Path, job: MergeJob, tokenizer: PreTrainedTokenizerBase, report: MergeReport
) -> MergeReport:
    """Write the base's other files, the model card and merge.json; returns what that says."""
    for file in job.carried_files():
        # What save_pretrained wrote belongs to the weights beside it.
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    if job.chosen_dtype is not None:
        _write_dtype(folder / "config.json", job.type_name)
    tokenizer.save_pretrained(folder)
    write_model_card(
        folder,
        base=job.name,
        base_folder=job.folder,
        adapters=[adapter.folder for adapter in job.adapters],
        report=dataclasses.asdict(report),
    )
    return write_report(folder, report)


def _with_requirements(
    output: Path, done: MergeReport, requirements: Mapping[str, Any]
) -> MergeReport:
    """Let merge.json tell what the gate found this time."""
    if done.requirements == dict(requirements):
        return done
    with explaining_writes(output):
        return write_report(output, dataclasses.replace(done, requirements=dict(requirements)))


def _check_apart(job: MergeJob, output: Path) -> None:
    """Raises: ConfigError when the output is, or holds, what is merged."""
    for folder in (job.folder, *(adapter.folder for adapter in job.adapters)):
        if folder.resolve().is_relative_to(output):
            raise ConfigError(
                f"--output {output} holds what is to be merged: {folder}",
                rule="base and adapters stay as they are",
                fix="choose another --output",
            )


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
