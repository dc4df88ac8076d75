"""Merging an adapter into its base model, from file to file.

job               what is merged with what: files, digests
meta_model        the model without weights, and where each weight lies
adapted           the adapter on it; the edits a merge consists of
edits, shards     the arithmetic, and the files it is written into
proofs            only the targets changed; logits as with the adapter, by streamed_weights
partial, report   the folder being written, and what merge.json says
in_memory         PEFT's own merge, for what cannot be streamed
"""

from trainer.merge.command import main
from trainer.merge.job import MergeOptions
from trainer.merge.merging import merge_adapter
from trainer.merge.report import MergeReport

__all__ = ["MergeOptions", "MergeReport", "main", "merge_adapter"]
