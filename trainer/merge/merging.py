"""Fold a LoRA adapter into its base model, and prove that the result is what was trained."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rich.console import Console

from trainer.errors import ConfigError, Interrupted
from trainer.merge.in_memory import merge_in_memory
from trainer.merge.job import MergeJob, find_job
from trainer.merge.meta_model import NotStreamable, compute_dtype
from trainer.merge.partial import Partial, check_disk, explaining_writes, open_partial
from trainer.merge.progress import MergeProgress
from trainer.merge.report import MergeReport, read_report, write_report
from trainer.merge.streamed import StreamedMerge
from trainer.tokenizer import find_tokenizer

_SPARE_BYTES = 64 * 2**20  # tokenizer, configs, headers


def merge_adapter(
    adapter: Path, output: Path, base: str | None = None, *, trust_remote_code: bool = False
) -> MergeReport:
    """Write base + adapter as one plain model folder at `output`.

    The model's own code runs when asked for here, or when the run it was trained in trusted it.

    The base stays in the 16 or 32-bit type it is stored in. Nothing appears at `output` until
    everything was written and checked. If this very merge is there already, it is left as it is.
    Raises: ConfigError, EnvironmentProblem (disk), TrainingFailed when a check does not hold.
    Ranks: rank 0 only.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    done = read_report(output) if os.path.lexists(output) else None
    if done is None:
        _refuse_existing(output)
    job = find_job(adapter, base, trust_remote_code=trust_remote_code)
    if done is not None:
        if done.identity != job.identity:
            _refuse_existing(output)
        console.print(f"{output} is this merge already: nothing to do", markup=False)
        return done
    _check_space(job, output)
    try:
        with open_partial(output, job.identity) as partial:
            return _merge(job, partial, output, console)
    except (KeyboardInterrupt, Interrupted):
        console.print("what is finished stays: the same command goes on from there", markup=False)
        raise


def _merge(job: MergeJob, partial: Partial, output: Path, console: Console) -> MergeReport:
    tokenizer = find_tokenizer(job.adapter, str(job.folder), trust_remote_code=job.trusted)
    with explaining_writes(output):
        try:
            outcome = StreamedMerge(job).run(partial, tokenizer, MergeProgress(console))
            how = "streamed"
        except NotStreamable as reason:
            how = f"in memory: {reason}"
            console.print(f"merging {how}", markup=False)
            partial.clear()
            outcome = merge_in_memory(job, partial.path, tokenizer)
    for note in outcome.notes:
        console.print(f"warning: {note}", markup=False)
    report = MergeReport(
        base=job.name,
        adapter=str(job.adapter),
        output=str(output),
        dtype=str(compute_dtype(job.config, job.files)).removeprefix("torch."),
        targets=outcome.targets,
        num_adapter_tensors=len(job.weights.tensors),
        max_logit_difference=outcome.max_logit_difference,
        max_logit=outcome.max_logit,
        how=how,
        base_digest=job.base_digest,
        adapter_digest=job.adapter_digest,
        notes=outcome.notes,
    )
    with explaining_writes(output):
        for file in job.carried_files():
            # What save_pretrained wrote belongs to the weights beside it.
            if not (partial.path / file.name).exists():
                shutil.copyfile(file, partial.path / file.name)
        tokenizer.save_pretrained(partial.path)
        report = write_report(partial.path, report)
        partial.publish(output)
    return report


def _check_space(job: MergeJob, output: Path) -> None:
    """Raises: EnvironmentProblem; what an interrupted merge left counts as free."""
    left = output.with_name(f".{output.name}.partial")
    there = sum(file.stat().st_size for file in left.glob("*")) if left.is_dir() else 0
    check_disk(output, _SPARE_BYTES + sum(file.num_bytes for file in job.files) - there)


def _refuse_existing(output: Path) -> None:
    if os.path.lexists(output):
        raise ConfigError(
            f"{output} exists",
            rule="a merge never overwrites",
            fix="remove it, or choose another --output",
        )
