"""The merge whose memory does not depend on the model's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trainer.config_schema import BasePrecision
from trainer.merge.candidate import choose
from trainer.merge.edits import Edit
from trainer.merge.job import MergeJob
from trainer.merge.meta_model import build_meta_model
from trainer.merge.naming import listed
from trainer.merge.partial import Partial
from trainer.merge.progress import MergeProgress
from trainer.merge.proofs import (
    changed_tensors,
    check_changes,
    check_logits,
    sample_ids,
    sample_logits,
)
from trainer.merge.report import ORIGINAL
from trainer.merge.shards import write_index, write_shard
from trainer.merge.streamed_weights import StreamedWeights
from trainer.merge.weight_files import Place, WeightFile, open_weights, written_type


@dataclass(frozen=True)
class Outcome:
    """What was done to the weights, and what comparing showed."""

    targets: tuple[str, ...]
    max_logit_difference: float
    max_logit: float
    notes: tuple[str, ...]
    base_precision: BasePrecision = ORIGINAL
    distances: dict[str, float] | None = None


class StreamedMerge:
    """One merge, from file to file."""

    def __init__(self, job: MergeJob, tokenizer: PreTrainedTokenizerBase) -> None:
        self.job, self.ids = job, sample_ids(tokenizer)

    def run(self, partial: Partial, progress: MergeProgress) -> Outcome:
        """Write the merged shards and prove them.

        Raises: ConfigError or TrainingFailed when the parts do not fit or a check does not hold,
            NotStreamable before anything is written, OSError.
        """
        job = self.job
        with progress.phase("logits of base + adapter", None):
            choice = choose(job, self.ids)
        edits = choice.candidate.edits
        shards = [_safetensors_name(file.path.name) for file in job.files]
        with progress.phase("merging", job.num_bytes) as advance:
            for file, name in zip(job.files, shards, strict=True):
                if name in partial.finished:
                    advance(file.num_bytes)
                    continue
                of_file = {t.name: edits[t.place] for t in file.tensors if t.place in edits}
                write_shard(file, partial.path / name, of_file, job.chosen_dtype, advance)
                partial.record(name)
        merged = [open_weights(partial.path / name) for name in shards]
        if job.index is not None:
            write_index(partial.path, merged)
        notes = self._check_changes(edits, merged, progress)
        with progress.phase("logits of the merged model", None):
            found = self._merged_logits(merged)
        difference, largest = check_logits(choice.expected, found, job.dtype)
        return Outcome(
            targets=tuple(sorted(choice.candidate.names[place] for place in edits)),
            max_logit_difference=difference,
            max_logit=largest,
            notes=notes,
            base_precision=choice.candidate.precision,
            distances=choice.distances_with(found),
        )

    def _check_changes(
        self, by_place: Mapping[Place, Edit], merged: Sequence[WeightFile], progress: MergeProgress
    ) -> tuple[str, ...]:
        """Compare base and result byte by byte; returns what the user should know about them."""
        changed: set[str] = set()
        dtype = self.job.chosen_dtype
        with progress.phase("comparing", self.job.num_bytes) as advance:
            for file, other in zip(self.job.files, merged, strict=True):
                changed |= changed_tensors(file, other, dtype, advance)
        edits = {edit.target.name: edit for edit in by_place.values()}
        still = [name for name in edits if name not in changed and edits[name].must_change()]
        # Not every update survives rounding; one that was computed and lost is not a mistake.
        lost = [name for name in still if _leaves_as_is(edits[name], dtype)]
        required = [name for name in still if name not in lost]
        check_changes(changed, edits.keys(), required)
        if not changed and not lost:
            return ("the adapter changes nothing: all its updates are zero",)
        if lost:
            rounded = str(written_type(edits[lost[0]].target, dtype)).removeprefix("torch.")
            return (
                f"{len(lost)} of {len(edits)} adapted weights stay as they are: the adapter's "
                f"updates are too small for {rounded}: {listed(lost)}",
            )
        return ()

    def _merged_logits(self, merged: Sequence[WeightFile]) -> Tensor:
        result = build_meta_model(self.job.config, merged, self.job.dtype, trusted=self.job.trusted)
        with StreamedWeights(result.values):
            return sample_logits(result.model, self.ids)


def _leaves_as_is(edit: Edit, dtype: torch.dtype | None) -> bool:
    kind, before = written_type(edit.target, dtype), edit.target.open()
    return all(
        torch.equal(rows, before(start, stop).to(kind)) for start, stop, rows in edit.blocks(kind)
    )


def _safetensors_name(name: str) -> str:
    if name.endswith(".bin"):
        return name.removeprefix("pytorch_").removesuffix(".bin") + ".safetensors"
    return name
