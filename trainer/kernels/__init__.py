"""Faster forms of what a step computes, each equal to the plain model's up to rounding.

`packed_attention` attention within each example of a row; `lora` adapters in the compute precision;
`loss` the vocabulary's loss in chunks; `compiling` what torch.compile makes of them and the layers.
"""
