"""What a merge could become: the base in one precision, with the adapters on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.config_schema import BasePrecision
from trainer.errors import ConfigError
from trainer.merge.adapted import AdaptedModel, attach
from trainer.merge.edits import Edit
from trainer.merge.job import MergeJob
from trainer.merge.meta_model import MetaModel, NotStreamable, build_meta_model
from trainer.merge.proofs import sample_logits
from trainer.merge.quantized import AsTrained, Quantization, dequantizing_edits
from trainer.merge.report import DEQUANTIZED, ORIGINAL
from trainer.merge.streamed_weights import StreamedWeights
from trainer.merge.weight_files import Place, StoredTensor


@dataclass(frozen=True)
class Candidate:
    """One way to merge, not yet done."""

    precision: BasePrecision
    adapted: AdaptedModel
    """With the last adapter on what the others made of the base."""
    edits: Mapping[Place, Edit]
    """Of the base's files."""
    names: Mapping[Place, str]
    """The parameters those tensors are."""

    def logits(self, ids: Tensor, weights: type[StreamedWeights] = StreamedWeights) -> Tensor:
        """Compute with the adapter beside the base. Shapes: ids [P, T]; [P, T, V].

        Raises: NotStreamable for a model that needs its weights all at once.
        """
        with weights(self.adapted.values):
            try:
                return sample_logits(self.adapted.model, ids)
            except RuntimeError as error:
                if "meta" not in str(error):
                    raise
                # Code that takes a parameter's storage apart; seen in no model of transformers.
                raise NotStreamable(f"{type(self.adapted.model).__name__}: {error}") from error


@dataclass(frozen=True)
class Choice:
    """The candidate to merge, and why."""

    candidate: Candidate
    expected: Tensor
    """Its logits [P, T, V]."""
    distances: Mapping[str, float]
    """Of each candidate from what was trained; empty when training did not quantise the base."""
    trained: Tensor | None = None
    """Logits of the adapter on the quantised base."""

    def distances_with(self, merged: Tensor) -> dict[str, float] | None:
        """Return the distances, that of the merged model's own logits in place of its candidate."""
        if self.trained is None:
            return None
        found: dict[str, float] = {**self.distances}
        found[self.candidate.precision] = _distance(merged, self.trained)
        return found


def build_candidate(
    job: MergeJob, precision: BasePrecision, quantization: Quantization | None = None
) -> Candidate:
    """Put the adapters on the base, one after another.

    Raises: NotStreamable, ConfigError or TrainingFailed when the parts do not fit.
    """

    def build() -> MetaModel:
        return build_meta_model(job.config, job.files, job.dtype, trusted=job.trusted)

    base = build()
    names = {
        stored.place: base.names[key][0]
        for key, stored in base.values.items()
        if isinstance(stored, StoredTensor)
    }
    edits: dict[Place, Edit] = {}
    if precision == DEQUANTIZED and quantization is not None:
        edits = dequantizing_edits(base, job.config, quantization, trusted=job.trusted)
    adapted = attach(base.with_edits(edits), job.adapters[0])
    edits |= {edit.target.place: edit for edit in adapted.edits}
    for adapter in job.adapters[1:]:
        adapted = attach(build().with_edits(edits), adapter)
        edits |= {edit.target.place: edit for edit in adapted.edits}
    return Candidate(precision, adapted, edits, names)


def choose(job: MergeJob, ids: Tensor) -> Choice:
    """Build what was asked for; where training quantised the base, measure both precisions.

    Raises: as `build_candidate`; ConfigError for token ids that the model has no row for.
    """
    if job.quantization is None or len(job.adapters) > 1:
        candidate = build_candidate(job, ORIGINAL)
        _check_ids(job, ids)
        return Choice(candidate, candidate.logits(ids), {})
    candidates = [
        build_candidate(job, precision, job.quantization) for precision in (ORIGINAL, DEQUANTIZED)
    ]
    _check_ids(job, ids)
    trained = candidates[1].logits(ids, AsTrained)
    logits = {candidate.precision: candidate.logits(ids) for candidate in candidates}
    distances: dict[str, float] = {p: _distance(found, trained) for p, found in logits.items()}
    closest = min(candidates, key=lambda candidate: distances[candidate.precision])
    chosen = next((c for c in candidates if c.precision == job.precision), closest)
    return Choice(chosen, logits[chosen.precision], distances, trained)


def _check_ids(job: MergeJob, ids: Tensor) -> None:
    rows = job.config.get_text_config().vocab_size
    if int(ids.max()) >= rows:
        raise ConfigError(
            f"the tokenizer gives token {int(ids.max())}, the embedding has {rows} rows",
            rule="a tokenizer has no more tokens than its model",
            fix="check that base, adapter and the tokenizer beside it belong together",
        )


def _distance(one: Tensor, other: Tensor) -> float:
    return float(torch.sqrt(torch.mean((one - other) ** 2)))
