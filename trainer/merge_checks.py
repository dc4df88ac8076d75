"""The proofs behind a merge: every tensor used, only the targets changed, the same logits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from trainer.errors import ConfigError, TrainingFailed

_PROMPTS = ("Hello, how are you?", "The three most important points are", "1 2 3 4 5 6")
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Largest part of the largest logit that rounding the merged weights to their type may move.
# The sum W + BA is rounded once per weight: eps is 1.2e-7, 9.8e-4 and 7.8e-3.
_LOGIT_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def check_adapter_tensors(adapted: PeftModel, adapter: Path) -> int:
    """Check that every tensor of the file sits in the model, bit for bit, and none is missing.

    Returns the number of tensors. PEFT itself only warns.
    Raises: ConfigError without a safetensors file, TrainingFailed for tensors left over, absent or
        not finite.
    """
    in_model = get_peft_model_state_dict(adapted)
    path = adapter / _ADAPTER_WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            stored: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}",
            rule=f"an adapter's weights are in {_ADAPTER_WEIGHTS}",
            fix="copy the adapter again, or save it with safe_serialization",
        ) from error
    not_finite = sorted(name for name, tensor in stored.items() if not tensor.isfinite().all())
    if not_finite:
        raise TrainingFailed(
            f"{len(not_finite)} adapter tensors are not finite: {_first(not_finite)}",
            rule="every weight of an adapter is a number",
            fix="merge an earlier checkpoint: RUN/checkpoints/step-N",
        )
    unused = sorted(stored.keys() - in_model.keys())
    absent = sorted(in_model.keys() - stored.keys())
    changed = sorted(
        name
        for name in stored.keys() & in_model.keys()
        if not torch.equal(stored[name].to(in_model[name].dtype), in_model[name])
    )
    for names, what in (
        (unused, "not used by this base model"),
        (absent, "missing from the file"),
        (changed, "not loaded as stored"),
    ):
        if names:
            raise TrainingFailed(
                f"{len(names)} adapter tensors are {what}: {_first(names)}",
                rule="every tensor of an adapter goes into the merged model, exactly once",
                fix="check that the base model and the adapter belong together",
            )
    return len(stored)


def targeted_parameters(adapted: PeftModel) -> dict[str, bool]:
    """Name the base parameters a merge may change; True where it must (the update is not zero)."""
    targets: dict[str, bool] = {}
    bias = adapted.peft_config["default"].to_dict()["bias"]
    root = adapted.get_base_model()
    for name, module in root.named_modules():
        if isinstance(module, LoraLayer):
            targets[f"{name}.weight"] = _has_update(module)
            if bias != "none":
                targets[f"{name}.bias"] = False
        if hasattr(module, "modules_to_save") and isinstance(module.modules_to_save, nn.ModuleDict):
            for parameter, _ in module.modules_to_save["default"].named_parameters():
                targets[f"{name}.{parameter}"] = False
    if bias == "all":
        targets.update(
            {
                name.replace(".base_layer.", "."): False
                for name, _ in root.named_parameters()
                if name.endswith(".bias")
            }
        )
    return targets


def digests(model: nn.Module) -> dict[str, bytes]:
    """Hash every parameter's bytes: a second copy of the base would not fit beside a large one."""
    return {
        name: hashlib.blake2b(
            parameter.detach().contiguous().view(torch.uint8).numpy().data, digest_size=16
        ).digest()
        for name, parameter in model.named_parameters()
    }


def check_changes(
    before: Mapping[str, bytes], after: Mapping[str, bytes], targets: Mapping[str, bool]
) -> None:
    """Check that exactly the targeted weights changed.

    Raises: TrainingFailed naming what differs from that.
    """
    if before.keys() != after.keys():
        raise TrainingFailed(
            f"the merge changed the model's structure: {_first(before.keys() ^ after.keys())}",
            rule="a merged model has the base model's parameters",
            fix="check that the base model and the adapter belong together",
        )
    changed = {name for name in before if before[name] != after[name]}
    stray = sorted(changed - targets.keys())
    unmoved = sorted(name for name, must in targets.items() if must and name not in changed)
    if stray or unmoved:
        what = f"changed outside its targets: {_first(stray)}" if stray else ""
        what = what or f"left targeted weights as they were: {_first(unmoved)}"
        raise TrainingFailed(
            f"the merge {what}",
            rule="the merged weights differ from the base for exactly the adapted layers",
            fix="adapt layers whose weights are not shared (tied) with others",
        )
    if not changed:
        raise TrainingFailed(
            "the adapter changes nothing: all its updates are zero",
            rule="a merged model differs from its base",
            fix="merge a checkpoint that was trained for at least one step",
        )


@torch.no_grad()
def sample_logits(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """Compute float32 logits [T, V] for a few prompts."""
    device = next(iter(model.parameters())).device
    logits = []
    for prompt in _PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids.to(device)
        logits.append(model(input_ids=ids, use_cache=False).logits[0].float())
    return logits


def check_logits(
    expected: list[Tensor], merged: list[Tensor], dtype: torch.dtype
) -> tuple[float, float]:
    """Compare the merged model's logits with those of base + adapter.

    Returns the largest difference and the largest logit.
    Raises: TrainingFailed beyond what rounding to `dtype` explains, or for not-a-number.
    """
    pairs = list(zip(expected, merged, strict=True))
    difference = max(float((a - b).abs().nan_to_num(nan=float("inf")).max()) for a, b in pairs)
    largest = max(float(a.abs().max()) for a in expected)
    if not difference <= _LOGIT_TOLERANCE[dtype] * largest:
        raise TrainingFailed(
            f"merged logits differ from base + adapter by {difference:.3g} "
            f"(largest logit {largest:.3g})",
            rule=f"they agree within {_LOGIT_TOLERANCE[dtype]:.0e} of the largest logit",
            fix="keep the adapter as it is and report this model's architecture",
        )
    return difference, largest


def _has_update(module: LoraLayer) -> bool:
    """Tell whether B A can be non-zero (linear layers and embeddings keep them apart)."""
    if "default" in module.lora_A:
        factors = [module.lora_A["default"].weight, module.lora_B["default"].weight]
    else:
        factors = [module.lora_embedding_A["default"], module.lora_embedding_B["default"]]
    return all(torch.count_nonzero(factor) > 0 for factor in factors)


def _first(names: Iterable[str], most: int = 3) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
