"""Merging an adapter into its base model, from file to file.

merging           the whole of it
job               what is merged with what: files, digests
meta_model        the model without weights, and where each weight lies
adapter, adapted  the adapter's files; the adapter on the model, and the edits that follow
candidate         the base in one precision with the adapters on it, and which one to take
quantized         the base as training read it in 4 or 8 bits
edits, shards     the arithmetic, and the files it is written into
proofs            only the targets changed; logits as with the adapter, by streamed_weights
output, partial   the place of the result, and the folder being written
report            what merge.json says
in_memory         PEFT's own merge, for what cannot be streamed
"""
