"""A model built from config.json alone, and where in the files each of its parameters lies."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from trainer.errors import ConfigError
from trainer.merge.edits import Edit, EditedTensor
from trainer.merge.streamed_weights import Values
from trainer.merge.weight_files import Place, StoredTensor, WeightFile


class NotStreamable(Exception):
    """This merge needs the model in memory; the message says why."""


@dataclass
class Conversion:
    """Stored tensors that transformers joins or splits on loading, such as experts."""

    converter: WeightConverter
    model: PreTrainedModel
    key: str
    name: str
    parts: list[tuple[str, StoredTensor]] = field(default_factory=list)
    """(pattern of the converter, tensor), in the order of loading."""

    def read(self) -> Tensor:
        """Convert as `from_pretrained` does."""
        converter = copy.deepcopy(self.converter)
        for pattern, stored in self.parts:
            converter.add_tensor(self.key, stored.name, pattern, stored.read)
        converted = converter.convert(self.key, model=self.model, config=self.model.config)
        value = converted[self.name]
        tensor: Tensor = value[0] if isinstance(value, list) else value
        return tensor


@dataclass(frozen=True)
class MetaModel:
    """A model on the meta device, with its buffers, and the values of its parameters on disk."""

    model: PreTrainedModel
    names: dict[int, list[str]]
    """Names by the id of the parameter; tied parameters have several."""
    values: dict[int, Values]
    """By the id of the parameter."""

    def stored(self, key: int) -> StoredTensor:
        """Return the tensor in the files that is the parameter with this id.

        Raises: NotStreamable when it is stored in several, or in another form.
        """
        value = self.values[key]
        if not isinstance(value, StoredTensor):
            name = self.names[key][0]
            raise NotStreamable(f"{name} is stored in several tensors, or in another form")
        return value

    def with_edits(self, edits: Mapping[Place, Edit]) -> MetaModel:
        """Return this model on weights that were edited before."""
        values = {
            key: EditedTensor.of(edits[value.place])
            if isinstance(value, StoredTensor) and value.place in edits
            else value
            for key, value in self.values.items()
        }
        return replace(self, values=values)


class _WithoutAllocating(TorchFunctionMode):
    """`torch.empty` gives no memory.

    Parameters begin so, and one of them may be larger than the machine.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def compute_dtype(config: PreTrainedConfig, files: Sequence[WeightFile]) -> torch.dtype:
    """Return the type `from_pretrained(dtype="auto")` would load in."""
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    floating = (t.dtype for file in files for t in file.tensors if t.dtype.is_floating_point)
    return next(floating, torch.float32)


def build_meta_model(
    config: PreTrainedConfig, files: Sequence[WeightFile], dtype: torch.dtype, *, trusted: bool
) -> MetaModel:
    """Build the model without its weights, and find each of them in the files.

    dtype: what it computes in.

    Raises: NotStreamable when one is not there under a name that transformers would find,
        ConfigError when it has another shape.
    """
    with init_empty_weights(include_buffers=False), _WithoutAllocating():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            copy.deepcopy(config),
            dtype=dtype,
            trust_remote_code=trusted,
        )
    model.tie_weights()
    model.eval()
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    found = _find_values(model, files)
    values: dict[int, Values] = {}
    for key, known_as in names.items():
        sources = [found[name] for name in known_as if name in found]
        if not sources:
            raise NotStreamable(f"{known_as[0]} is not in the files of the base")
        if len(sources) > 1:
            raise NotStreamable(f"{' and '.join(known_as)} are one in the model, not in the files")
        values[key] = sources[0]
    _check_shapes(model, values)
    _fill_buffers(model, found)
    return MetaModel(model, dict(names), values)


def _find_values(model: PreTrainedModel, files: Sequence[WeightFile]) -> dict[str, Values]:
    """Look up every stored tensor as transformers would on loading."""
    state = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    found: dict[str, Values] = {}
    conversions: dict[str, list[Conversion]] = {}
    for stored in sorted((t for file in files for t in file.tensors), key=_loading_order):
        key, pattern = rename_source_key(
            stored.name, renamings, converters, model.base_model_prefix, state
        )
        if pattern is None:
            if key in state:
                found[key] = stored
            continue
        converter = by_pattern[pattern]
        if key not in conversions:
            first, *others = converter.target_patterns
            targets = (key, *(key.replace(first, other) for other in others))
            conversions[key] = [Conversion(converter, model, key, name) for name in targets]
            found.update({c.name: c for c in conversions[key]})
        for conversion in conversions[key]:
            conversion.parts.append((pattern, stored))
    return found


def _loading_order(stored: StoredTensor) -> list[tuple[bool, int, str]]:
    """Numbers in a name by value: expert 2 comes before expert 10."""
    parts = stored.name.split(".")
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _check_shapes(model: nn.Module, values: dict[int, Values]) -> None:
    for name, parameter in model.named_parameters():
        stored = values[id(parameter)]
        if isinstance(stored, StoredTensor) and stored.shape != tuple(parameter.shape):
            raise ConfigError(
                f"{stored.path}: {stored.name} is stored as {list(stored.shape)}, the model's "
                f"{name} is {list(parameter.shape)}",
                rule="config.json describes the weights beside it",
                fix="copy or download the base model again",
            )


def _fill_buffers(model: nn.Module, found: dict[str, Values]) -> None:
    for name, buffer in list(model.named_buffers()):
        if name in found:
            owner, _, last = name.rpartition(".")
            module = model.get_submodule(owner)
            module._buffers[last] = found[name].read().to(buffer.dtype)
