"""The proofs behind a merge: only the targets changed, and the logits are the same.

Shapes: P prompts, T tokens of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trainer.errors import TrainingFailed
from trainer.merge.naming import listed
from trainer.merge.weight_files import StoredTensor, WeightFile, read_bytes, written_type

_PROMPTS = ("Hello, how are you?", "The three most important points are", "1 2 3 4 5 6")
_BLOCK_BYTES = 2**24
# Largest part of the largest logit that rounding the merged weights to their type may move.
# The sum W + BA is rounded once per weight: eps is 1.2e-7, 9.8e-4 and 7.8e-3.
_LOGIT_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def changed_tensors(
    base: WeightFile,
    merged: WeightFile,
    dtype: torch.dtype | None,
    advance: Callable[[int], None],
) -> set[str]:
    """Name the stored tensors that differ, in their bytes or from the base rounded to `dtype`.

    Raises: TrainingFailed when the files do not hold the same names and shapes, in that type.
    """
    others = {tensor.name: tensor for tensor in merged.tensors}
    changed: set[str] = set()
    if len(others) != len(base.tensors):
        raise _restructured(f"{len(base.tensors)} tensors became {len(others)}")
    for tensor in base.tensors:
        other = others.get(tensor.name)
        kind = written_type(tensor, dtype)
        if other is None or (other.dtype, other.shape) != (kind, tensor.shape):
            raise _restructured(tensor.name)
        compare = _is_same if kind == tensor.dtype else _is_same_rounded
        if not compare(tensor, other, advance):
            changed.add(tensor.name)
    return changed


def check_changes(
    changed: Collection[str], allowed: Collection[str], required: Collection[str]
) -> None:
    """Check that nothing but `allowed` changed, and all of `required`.

    Raises: TrainingFailed naming what differs from that.
    """
    stray = sorted(set(changed) - set(allowed))
    unmoved = sorted(set(required) - set(changed))
    if stray or unmoved:
        what = f"changed outside its targets: {listed(stray)}" if stray else ""
        what = what or f"left targeted weights as they were: {listed(unmoved)}"
        raise TrainingFailed(
            f"the merge {what}",
            rule="the merged weights differ from the base for exactly the adapted layers",
            fix="adapt layers whose weights are not shared (tied) with others",
        )


def sample_ids(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return a few prompts as one batch [P, T]; short ones are repeated, so nothing is padding."""
    prompts: list[list[int]] = [list(tokenizer(prompt).input_ids) for prompt in _PROMPTS]
    prompts = [ids for ids in prompts if ids]
    longest = max(len(ids) for ids in prompts)
    return torch.tensor([(ids * longest)[:longest] for ids in prompts])


@torch.no_grad()
def sample_logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """Compute float32 logits [P, T, V]."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float()


def check_logits(expected: Tensor, merged: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Compare the merged model's logits with those of base + adapter.

    Returns the largest difference and the largest logit.
    Raises: TrainingFailed beyond what rounding to `dtype` explains, or for not-a-number.
    """
    for logits, whose in ((expected, "base + adapter"), (merged, "the merged model")):
        if not logits.isfinite().all():
            raise TrainingFailed(
                f"the logits of {whose} are not finite",
                rule="a model that cannot be computed with cannot be compared",
                fix="check the base model: its own logits should be finite in its type",
            )
    difference = float((expected - merged).abs().max())
    largest = float(expected.abs().max())
    if not difference <= _LOGIT_TOLERANCE.get(dtype, 1e-4) * largest:
        raise TrainingFailed(
            f"merged logits differ from base + adapter by {difference:.3g} "
            f"(largest logit {largest:.3g})",
            rule=f"they agree within {_LOGIT_TOLERANCE.get(dtype, 1e-4):.0e} of the largest logit",
            fix="keep the adapter as it is and report this model's architecture",
        )
    return difference, largest


def _is_same(one: StoredTensor, other: StoredTensor, advance: Callable[[int], None]) -> bool:
    same = True
    for start in range(0, one.num_bytes, _BLOCK_BYTES):
        size = min(_BLOCK_BYTES, one.num_bytes - start)
        advance(size)
        same = same and torch.equal(
            read_bytes(one.path, one.offset + start, size),
            read_bytes(other.path, other.offset + start, size),
        )
    return same


def _is_same_rounded(
    one: StoredTensor, other: StoredTensor, advance: Callable[[int], None]
) -> bool:
    same = True
    for start, stop in one.blocks():
        advance((stop - start) * one.row_bytes)
        same = same and torch.equal(one.read(start, stop).to(other.dtype), other.read(start, stop))
    return same


def _restructured(what: str) -> TrainingFailed:
    return TrainingFailed(
        f"the merge changed the model's structure: {what}",
        rule="a merged model has the base model's parameters",
        fix="check that the base model and the adapter belong together",
    )
