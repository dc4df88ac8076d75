"""The adapter as PEFT names its tensors, made of float32 masters by parameter name."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict

WEIGHTS = "adapter_model.safetensors"


def adapter_names(model: PeftModel) -> dict[str, str]:
    """Map PEFT's name of each adapter tensor to the name of the parameter that it holds.

    PEFT itself does the naming, on numbers in place of tensors.
    """
    first_name: dict[int, str] = {}
    names = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.append(first_name.setdefault(id(parameter), name))
    every = [n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    numbers = {name: torch.tensor(number) for number, name in enumerate(every)}
    kept = get_peft_model_state_dict(model, state_dict=numbers, save_embedding_layers=False)
    found = {key: names[int(number)] for key, number in kept.items()}
    if set(found.values()) != set(names):
        missing = sorted(set(names) - set(found.values()))
        raise RuntimeError(f"PEFT does not save {len(missing)} trained tensors: {missing[:3]}")
    return found


def adapter_tensors(
    names: Mapping[str, str], masters: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return PEFT's tensors; one that has two names is there twice."""
    return {key: masters[name] for key, name in names.items()}


def adapter_config(model: PeftModel) -> PeftConfig:
    """Return a copy of the adapter's description as PEFT saves it, for use and not for training."""
    config = deepcopy(model.peft_config["default"])
    config.inference_mode = True
    return config


def masters_of(
    names: Mapping[str, str], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return masters by parameter name: the way back from `adapter_tensors`."""
    return {name: tensors[key] for key, name in names.items()}
