"""A base model with its adapter, both on disk, and the edits a merge consists of.

PEFT builds the layers and owns what they mean: names, scaling, orientation. The values stay in
adapter_model.safetensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import Embedding, Linear, LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor

from trainer.errors import ConfigError, TrainingFailed
from trainer.merge.adapter import Adapter
from trainer.merge.edits import Dora, Edit, LowRank, Replaced
from trainer.merge.meta_model import MetaModel, NotStreamable
from trainer.merge.naming import listed
from trainer.merge.streamed_weights import Values
from trainer.merge.weight_files import StoredTensor
from trainer.model_source import explaining_load

_NAME = "default"
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base as it is; PiSSA and its like change it."""

_VARIANTS = ("NoneType", "DoraLinearVariant", "DoraEmbeddingVariant")


@dataclass(frozen=True)
class AdaptedModel:
    """The adapted model on the meta device, its values, and what merging it changes."""

    model: PeftModel
    values: dict[int, Values]
    edits: tuple[Edit, ...]


def attach(base: MetaModel, adapter: Adapter) -> AdaptedModel:
    """Put the adapter on the base, which becomes part of the result.

    Raises: ConfigError or TrainingFailed when they do not belong together, NotStreamable.
    """
    weights = adapter.weights
    with explaining_load(str(adapter.folder), field="adapter"):
        config = PeftConfig.from_pretrained(str(adapter.folder))
        if not isinstance(config, LoraConfig) or config.layer_replication:
            raise NotStreamable("the adapter changes more than single weights")
        if config.init_lora_weights not in _PLAIN_STARTS:
            raise NotStreamable(f"init_lora_weights {config.init_lora_weights!r} changes the base")
        config.inference_mode = True
        config.base_model_name_or_path = None  # PEFT warns of another one
        model: PeftModel = get_peft_model(base.model, config, _NAME, low_cpu_mem_usage=True)
    model.eval()
    parameters = _match_names(model, {t.name: t for t in weights.tensors})
    stored = {id(parameters[tensor.name]): tensor for tensor in weights.tensors}
    builder = _Edits(base, model, stored)
    edits = tuple(builder.build())
    used = Counter(
        tensor.name for tensor in (*builder.repeated, *(t for e in edits for t in e.used))
    )
    if wrong := [tensor.name for tensor in weights.tensors if used[tensor.name] != 1]:
        raise NotStreamable(f"the adapter's {listed(wrong)} do not go into one stored weight each")
    return AdaptedModel(model, {**base.values, **stored}, edits)


def _match_names(model: PeftModel, stored: dict[str, StoredTensor]) -> dict[str, Tensor]:
    """Find the parameter of every tensor of the adapter file.

    Raises: ConfigError, TrainingFailed.
    """
    state = model.state_dict(keep_vars=True)

    def expected(*, with_embeddings: bool) -> dict[str, Tensor]:
        return dict(get_peft_model_state_dict(model, state, save_embedding_layers=with_embeddings))

    parameters = expected(with_embeddings=False)
    if extra := stored.keys() - parameters.keys():
        # PEFT also stores the base's embedding when an adapter sits on it.
        wider = expected(with_embeddings=True)
        parameters.update({name: wider[name] for name in extra if name in wider})
    for name, tensor in stored.items():
        if name in parameters and tensor.shape != tuple(parameters[name].shape):
            rows, width = model.config.get_text_config().vocab_size, parameters[name].shape[1:]
            is_vocabulary = parameters[name].shape[0] == rows and tensor.shape[1:] == width
            if is_vocabulary and tensor.num_rows > rows:
                raise NotStreamable(f"training added {tensor.num_rows - rows} tokens")
            raise ConfigError(
                f"the adapter does not fit the base model: {name} is {list(tensor.shape)} in the "
                f"adapter, {list(parameters[name].shape)} on this base",
                rule="an adapter is merged into the base model it was trained on",
                fix="give that base model with --base",
            )
    unused = sorted(stored.keys() - parameters.keys())
    absent = sorted(parameters.keys() - stored.keys())
    for names, what in (
        (unused, "not used by this base model"),
        (absent, "missing from the file"),
    ):
        if names:
            raise TrainingFailed(
                f"{len(names)} adapter tensors are {what}: {listed(names)}",
                rule="every tensor of an adapter goes into the merged model, exactly once",
                fix="check that the base model and the adapter belong together",
            )
    return parameters


class _Edits:
    """Collects the edits of one adapted model."""

    def __init__(self, base: MetaModel, model: PeftModel, stored: dict[int, StoredTensor]) -> None:
        self.base, self.model, self.stored = base, model, stored
        self.repeated: list[StoredTensor] = []
        """Tensors of the adapter file that say what another one, or the base, says."""

    def build(self) -> Iterator[Edit]:
        adapted: set[int] = set()
        copies: dict[int, list[int]] = {}
        for module in self.model.get_base_model().modules():
            if isinstance(module, LoraLayer):
                if type(module) not in (Linear, Embedding):
                    raise NotStreamable(f"{type(module).__name__} adapters change other tensors")
                adapted.add(id(module.get_base_layer().weight))
                yield self._low_rank(module)
            elif isinstance(module, ModulesToSaveWrapper):
                trained = dict(module.modules_to_save[_NAME].named_parameters())
                for name, original in module.original_module.named_parameters():
                    copies.setdefault(id(original), []).append(id(trained[name]))
        for original, trained_copies in copies.items():
            yield self._replaced(original, [self.stored[key] for key in trained_copies])
        for key, tensor in self.stored.items():
            if key in adapted:
                self._check_repeated(self.base.stored(key), tensor)
            elif key in self.base.names:  # a bias trained in place
                yield Replaced(self.base.stored(key), tensor)

    def _replaced(self, original: int, trained: list[StoredTensor]) -> Edit:
        """Tied weights are one tensor of the base, and equal ones in the adapter."""
        names = self.base.names[original]
        if len(trained) != len(names):
            raise NotStreamable(f"training parted {' and '.join(names)}, which were one")
        for repeated in trained[1:]:
            self._check_repeated(trained[0], repeated)
        return Replaced(self.base.stored(original), trained[0])

    def _low_rank(self, layer: LoraLayer) -> Edit:
        key = id(layer.get_base_layer().weight)
        if len(self.base.names[key]) > 1:
            raise NotStreamable(f"{' and '.join(self.base.names[key])} are one weight")
        variant = type(layer.lora_variant.get(_NAME)).__name__
        if variant not in _VARIANTS:
            raise NotStreamable(f"{self.base.names[key][0]} has an adapter of another kind")
        is_embedding = isinstance(layer, Embedding)
        a = layer.lora_embedding_A[_NAME] if is_embedding else layer.lora_A[_NAME].weight
        b = layer.lora_embedding_B[_NAME] if is_embedding else layer.lora_B[_NAME].weight
        target, factors = self.base.stored(key), (self.stored[id(a)], self.stored[id(b)])
        scaling = float(layer.scaling[_NAME])
        is_transposed = is_embedding or bool(layer.fan_in_fan_out)
        if variant == "NoneType":
            return LowRank(target, *factors, scaling, is_transposed)
        magnitude = self.stored[id(layer.lora_magnitude_vector[_NAME].weight)]
        return Dora(target, *factors, scaling, is_transposed, magnitude)

    def _check_repeated(self, one: StoredTensor, other: StoredTensor) -> None:
        for start, stop in one.blocks():
            if not torch.equal(one.read(start, stop), other.read(start, stop).to(one.dtype)):
                raise NotStreamable(f"the adapter brings another {one.name} in {other.name}")
        self.repeated.append(other)
