"""Which layers of a model get adapters: presets, the names other models use, and typos."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trainer.errors import ConfigError
from trainer.lora_presets import ALL_LINEAR, LORA_PRESETS

_FUSED_QKV = ("qkv_proj", "query_key_value", "c_attn", "Wqkv")
_FIRST_MLP = ("gate_up_proj", "mlp.c_fc", "dense_h_to_4h", "fc1")
STAND_INS: dict[str, tuple[str, ...]] = {
    "q_proj": _FUSED_QKV,
    "k_proj": _FUSED_QKV,
    "v_proj": _FUSED_QKV,
    "o_proj": ("out_proj", "attn.c_proj", "attention.dense", "self_attention.dense"),
    "gate_proj": (*_FIRST_MLP, "up_proj"),
    "up_proj": _FIRST_MLP,
    "down_proj": ("mlp.c_proj", "dense_4h_to_h", "fc2"),
}
"""Llama's layer name -> what does the same work in models that lack it, fused or renamed.

Phi-3: qkv_proj, gate_up_proj. GPT-NeoX and Falcon: query_key_value, (self_)attention.dense,
dense_h_to_4h, dense_4h_to_h. GPT-2: c_attn, c_fc, c_proj. OPT: out_proj, fc1, fc2. MPT: Wqkv,
out_proj, and no gate beside up_proj. Source: the modelling files of transformers 5.23.
"""


@dataclass(frozen=True)
class LoraTargets:
    """What PEFT is told to adapt, and what had to be said about it."""

    names: str | tuple[str, ...]
    notes: tuple[str, ...] = ()


def resolve_targets(model: PreTrainedModel, requested: str | Sequence[str]) -> LoraTargets:
    """Turn a preset or layer names into suffixes this model has.

    A standard name the model lacks becomes its stand-in, with a note, because PEFT would skip it
    silently as long as another name matches.
    Raises: ConfigError when a name matches no layer.
    """
    wanted = (requested,) if isinstance(requested, str) else tuple(requested)
    if wanted == (ALL_LINEAR,):
        return LoraTargets(ALL_LINEAR)
    if len(wanted) == 1:
        wanted = LORA_PRESETS.get(wanted[0], wanted)
    layers = adaptable_layers(model)
    names: list[str] = []
    moved: dict[tuple[str, ...], list[str]] = {}
    missing: list[str] = []
    for name in wanted:
        if _matches(name, layers):
            names.append(name)
            continue
        found = tuple(other for other in STAND_INS.get(name, ()) if _matches(other, layers))
        if not found:
            missing.append(name)
            continue
        moved.setdefault(found, []).append(name)
        names.extend(found)
    if missing:
        raise _no_such_layer(missing, model)
    notes = tuple(
        f"lora.target_modules: {', '.join(old)} -> {', '.join(new)} "
        f"(what {model.config.model_type} calls or fuses them into)"
        for new, old in moved.items()
    )
    return LoraTargets(tuple(dict.fromkeys(names)), notes)


def adaptable_layers(model: nn.Module) -> list[str]:
    """List the full names of layers a LoRA adapter can sit on."""
    kinds = (nn.Linear, Conv1D, nn.Embedding, nn.Conv2d)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def linear_layer_names(model: PreTrainedModel) -> list[str]:
    """List the last name parts of the linear layers, the output head left out."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and module is not head
        }
    )


def check_patterns(field: str, patterns: Iterable[str], targeted: Sequence[str]) -> None:
    """Check that each rank or alpha pattern matches an adapted layer; PEFT would ignore it.

    Raises: ConfigError naming the pattern and the adapted layers.
    """
    last_parts = sorted({name.rpartition(".")[2] for name in targeted})
    for pattern in patterns:
        # The same expression PEFT uses (peft.utils.other.get_pattern_key, 0.21).
        if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in targeted):
            raise ConfigError(
                f"{field}: {pattern!r} matches none of the adapted layers",
                rule="a pattern overrides the rank or alpha of layers in lora.target_modules",
                fix=_suggestion(pattern, last_parts),
            )


def check_expressions(field: str, patterns: Iterable[str]) -> None:
    """Check that patterns are regular expressions, before PEFT stumbles over one.

    Raises: ConfigError naming the pattern.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"{field}: {pattern!r} is not a regular expression ({error})",
                rule="a pattern is a layer name or a regular expression ending in one",
                fix="write the layer's name, such as q_proj",
            ) from error


def check_modules_to_save(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Check that each module to train in full is there; PEFT would ignore a wrong name.

    Raises: ConfigError naming the modules of the model.
    """
    modules = [name for name, _ in model.named_modules() if name]
    for name in names:
        if not _matches(name, modules):
            parts = sorted({part.rpartition(".")[2] for part in modules if not part[-1].isdigit()})
            raise ConfigError(
                f"lora.modules_to_save: the model has no module {name!r}",
                rule="modules_to_save names modules trained in full beside the adapters",
                fix=_suggestion(name, parts),
            )


def _matches(name: str, layers: Iterable[str]) -> bool:
    """Match as PEFT does: the whole name, or its end at a dot."""
    return any(layer == name or layer.endswith("." + name) for layer in layers)


def _suggestion(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    start = f"did you mean {close[0]}? " if close else ""
    return f"{start}the model has: {', '.join(known)}"


def _no_such_layer(missing: Sequence[str], model: PreTrainedModel) -> ConfigError:
    known = linear_layer_names(model)
    listed = ", ".join(repr(name) for name in missing)
    return ConfigError(
        f"lora.target_modules: {listed} matches no layer of this {model.config.model_type} model",
        rule=f"a target is a layer's name or one of the presets {', '.join(LORA_PRESETS)}, "
        f"{ALL_LINEAR}",
        fix=_suggestion(missing[0], known),
    )
