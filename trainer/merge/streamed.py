"""The merge whose memory does not depend on the model's size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trainer.merge.adapted import AdaptedModel, attach
from trainer.merge.edits import Edit
from trainer.merge.job import MergeJob
from trainer.merge.meta_model import NotStreamable, build_meta_model, compute_dtype
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
from trainer.merge.shards import write_shard
from trainer.merge.streamed_weights import StreamedWeights
from trainer.merge.weight_files import StoredTensor, WeightFile, open_weights


@dataclass(frozen=True)
class Outcome:
    """What was done to the weights, and what comparing showed."""

    targets: tuple[str, ...]
    max_logit_difference: float
    max_logit: float
    notes: tuple[str, ...]


class StreamedMerge:
    """One merge, from file to file."""

    def __init__(self, job: MergeJob) -> None:
        """Raises: NotStreamable, ConfigError or TrainingFailed when the parts do not fit."""
        self.job = job
        base = build_meta_model(job.config, job.files, trusted=job.trusted)
        names = {
            (stored.path, stored.name): base.names[key][0]
            for key, stored in base.values.items()
            if isinstance(stored, StoredTensor)
        }
        self.adapted: AdaptedModel = attach(base, job.adapter, job.weights)
        self.edits: dict[tuple[Path, str], Edit] = {
            (edit.target.path, edit.target.name): edit for edit in self.adapted.edits
        }
        self.targets = tuple(sorted(names[place] for place in self.edits))

    def run(
        self, partial: Partial, tokenizer: PreTrainedTokenizerBase, progress: MergeProgress
    ) -> Outcome:
        """Write the merged shards and prove them.

        Raises: TrainingFailed when a check does not hold, NotStreamable before anything is
            written, OSError.
        """
        ids = sample_ids(tokenizer)
        with progress.phase("logits of base + adapter", None):
            expected = self._expected_logits(ids)
        shards = self._shard_names()
        with progress.phase("merging", sum(file.num_bytes for file in self.job.files)) as advance:
            for file, name in zip(self.job.files, shards, strict=True):
                if name in partial.finished:
                    advance(file.num_bytes)
                    continue
                write_shard(file, partial.path / name, self._edits_of(file), advance)
                partial.record(name)
        self._write_index(partial.path, shards)
        merged = [open_weights(partial.path / name) for name in shards]
        notes = self._check_changes(merged, progress)
        with progress.phase("logits of the merged model", None):
            found = self._merged_logits(merged, ids)
        dtype = compute_dtype(self.job.config, self.job.files)
        difference, largest = check_logits(expected, found, dtype)
        return Outcome(self.targets, difference, largest, notes)

    def _edits_of(self, file: WeightFile) -> dict[str, Edit]:
        return {name: edit for (path, name), edit in self.edits.items() if path == file.path}

    def _shard_names(self) -> list[str]:
        return [_safetensors_name(file.path.name) for file in self.job.files]

    def _write_index(self, folder: Path, shards: Sequence[str]) -> None:
        """Copy the index, or write the one of a base that was converted."""
        index = self.job.index
        if index is None:
            return
        if index.name.startswith("model."):
            shutil.copyfile(index, folder / index.name)
            return
        weight_map = {
            tensor.name: shard
            for file, shard in zip(self.job.files, shards, strict=True)
            for tensor in file.tensors
        }
        total = sum(tensor.num_bytes for file in self.job.files for tensor in file.tensors)
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(content, indent=2, sort_keys=True)
        (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")

    def _check_changes(
        self, merged: Sequence[WeightFile], progress: MergeProgress
    ) -> tuple[str, ...]:
        """Compare base and result byte by byte; returns what the user should know about them."""
        changed: set[str] = set()
        with progress.phase("comparing", sum(file.num_bytes for file in self.job.files)) as advance:
            for file, other in zip(self.job.files, merged, strict=True):
                changed |= changed_tensors(file, other, advance)
        edits = {edit.target.name: edit for edit in self.adapted.edits}
        still = [name for name in edits if name not in changed and edits[name].must_change()]
        # Not every update survives rounding; one that was computed and lost is not a mistake.
        lost = [name for name in still if _leaves_as_is(edits[name])]
        required = [name for name in still if name not in lost]
        check_changes(changed, edits.keys(), required)
        if not changed and not lost:
            return ("the adapter changes nothing: all its updates are zero",)
        if lost:
            dtype = str(edits[lost[0]].target.dtype).removeprefix("torch.")
            return (
                f"{len(lost)} of {len(edits)} adapted weights stay as they are: the adapter's "
                f"updates are too small for {dtype}: {listed(lost)}",
            )
        return ()

    def _expected_logits(self, ids: Tensor) -> Tensor:
        with StreamedWeights(self.adapted.values):
            try:
                return sample_logits(self.adapted.model, ids)
            except RuntimeError as error:
                if "meta" not in str(error):
                    raise
                # Code that takes a parameter's storage apart; seen in no model of transformers.
                raise NotStreamable(f"{type(self.adapted.model).__name__}: {error}") from error

    def _merged_logits(self, merged: Sequence[WeightFile], ids: Tensor) -> Tensor:
        result = build_meta_model(self.job.config, merged, trusted=self.job.trusted)
        with StreamedWeights(result.values):
            return sample_logits(result.model, ids)


def _leaves_as_is(edit: Edit) -> bool:
    return all(
        torch.equal(rows, edit.target.read(start, stop)) for start, stop, rows in edit.blocks()
    )


def _safetensors_name(name: str) -> str:
    if name.endswith(".bin"):
        return name.removeprefix("pytorch_").removesuffix(".bin") + ".safetensors"
    return name
