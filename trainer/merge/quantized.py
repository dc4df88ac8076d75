"""The base as training saw it: weights stored in 4 or 8 bits by bitsandbytes.

Merging into what such weights read as (`--base-precision dequantized`) takes the quantisation's
error along, which the adapter was trained beside; merging into the original weights takes it away
from under the adapter. Which is closer to the model that was trained is measured.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer

from trainer.merge.edits import Edit, EditedTensor
from trainer.merge.meta_model import MetaModel
from trainer.merge.streamed_weights import StreamedWeights
from trainer.merge.weight_files import Place, Rows, StoredTensor

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

_OUTLIERS_FROM = 6.0
"""LLM.int8() computes features beyond it in 16 bits; transformers' default."""


Kind = Literal["nf4", "fp4", "int8"]


@dataclass(frozen=True)
class Quantization:
    """How training stored the frozen base."""

    kind: Kind
    is_double: bool = True
    """4 bits: whether the scales were quantised too."""

    def layer(self, weight: Tensor) -> Linear4bit | Linear8bitLt:
        """Make the layer training computed with from its weight [O, I]."""
        from bitsandbytes import nn

        num_outputs, num_inputs = weight.shape
        layer: Linear4bit | Linear8bitLt
        if self.kind == "int8":
            layer = nn.Linear8bitLt(
                num_inputs,
                num_outputs,
                bias=False,
                has_fp16_weights=False,
                threshold=_OUTLIERS_FROM,
                device="meta",
            )
            layer.weight = nn.Int8Params(weight, has_fp16_weights=False, requires_grad=False)
        else:
            layer = nn.Linear4bit(
                num_inputs, num_outputs, bias=False, compute_dtype=weight.dtype, device="meta"
            )
            layer.weight = nn.Params4bit(
                weight,
                requires_grad=False,
                quant_type=self.kind,
                compress_statistics=self.is_double,
            )
            # See trainer.model: training does not compute with weights packed for inference.
            layer.support_avx512bf16_for_cpu = False
        return layer.to("cpu").eval()

    def dequantized(self, weight: Tensor) -> Tensor:
        """Return a weight [O, I] as it reads after quantisation, in its own type."""
        from bitsandbytes import functional

        stored = self.layer(weight).weight
        values: Tensor = (
            functional.int8_vectorwise_dequant(stored.data, stored.SCB)
            if self.kind == "int8"
            else functional.dequantize_4bit(stored.data, stored.quant_state)
        )
        return values.to(weight.dtype)

    def quantized_modules(self, config: PreTrainedConfig, *, trusted: bool) -> dict[str, bool]:
        """Name the linear layers transformers quantises; True for those stored transposed."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), trust_remote_code=trusted
            )
            before = dict(model.named_modules())
            settings = (
                BitsAndBytesConfig(load_in_8bit=True)
                if self.kind == "int8"
                else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=self.kind)
            )
            quantizer = AutoHfQuantizer.from_config(settings)
            quantizer.preprocess_model(model, device_map={"": "cpu"})
        return {
            name: isinstance(before[name], Conv1D)
            for name, module in model.named_modules()
            if type(module).__module__.startswith("bitsandbytes") and name in before
        }


@dataclass(frozen=True)
class Dequantized(Edit):
    """A weight of the base, rounded as its quantised form is."""

    quantization: Quantization
    is_transposed: bool

    def product(self, inputs: Tensor) -> Tensor:
        """Multiply as training did, the quantised weight as it is. Shapes: [..., I] to [..., O]."""
        output: Tensor = self.quantization.layer(self.target.read())(inputs)
        return output

    def _open(self) -> Rows:
        weight = self.target.read()  # the scales are taken over all of it
        weight = weight.T.contiguous() if self.is_transposed else weight
        values = self.quantization.dequantized(weight)
        values = values.T if self.is_transposed else values
        return lambda start, stop: values[start:stop]


class AsTrained(StreamedWeights):
    """Quantised linear layers are computed by bitsandbytes, as in training."""

    def _product(self, inputs: Tensor, stored: StoredTensor, dtype: torch.dtype) -> Tensor:
        if isinstance(stored, EditedTensor) and isinstance(stored.edit, Dequantized):
            return stored.edit.product(inputs)
        return super()._product(inputs, stored, dtype)


def dequantizing_edits(
    base: MetaModel, config: PreTrainedConfig, quantization: Quantization, *, trusted: bool
) -> dict[Place, Edit]:
    """Return the edits that turn the base into what its quantised form reads as.

    Raises: NotStreamable when such a weight is not one tensor of the files.
    """
    modules = quantization.quantized_modules(config, trusted=trusted)
    parameters = dict(base.model.named_parameters())
    edits = (
        Dequantized(base.stored(id(parameters[f"{name}.weight"])), quantization, is_transposed)
        for name, is_transposed in modules.items()
    )
    return {edit.target.place: edit for edit in edits}
