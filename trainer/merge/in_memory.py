"""The merge by PEFT with the whole model in memory, for adapters that cannot be streamed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.other import TrainableTokensWrapper
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from trainer.cgroup import memory_available_bytes
from trainer.errors import ConfigError, EnvironmentProblem, TrainingFailed
from trainer.merge.adapter import Adapter
from trainer.merge.job import MergeJob
from trainer.merge.naming import listed
from trainer.merge.proofs import check_changes, check_logits, sample_ids, sample_logits
from trainer.merge.report import ORIGINAL
from trainer.merge.streamed import Outcome
from trainer.merge.weight_files import StoredTensor
from trainer.model_source import explaining_load

_GIB = 2**30
_MEMORY_FACTOR = 1.2  # the base; a layer's merged weights; libraries and a prompt's activations


def merge_in_memory(job: MergeJob, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Outcome:
    """Merge with PEFT into `folder`, checking before and after.

    Raises: ConfigError, TrainingFailed when a check does not hold; OSError.
    """
    _check_possible(job)
    model = _load_base(job)
    adapter = job.adapters[0]
    _add_tokens(model, adapter, len(tokenizer))
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    before = _digests(model)
    with explaining_load(str(adapter.folder), field="adapter"):
        adapted = PeftModel.from_pretrained(model, adapter.folder)
    _check_adapter_tensors(adapted, adapter)
    targets = _targeted_parameters(adapted)
    for name, parameter in adapted.get_base_model().named_parameters():
        if "modules_to_save" in name:  # kept in float32 while training, unlike their neighbours
            original = name.replace("modules_to_save.default.", "")
            parameter.data = parameter.data.to(dtypes.get(original, parameter.dtype))
    adapted.eval()
    ids = sample_ids(tokenizer)
    expected = sample_logits(adapted, ids)
    merged = _merged(adapted)
    names = dict(merged.named_parameters()).keys()
    if before.keys() != names:
        raise TrainingFailed(
            f"the merge changed the model's structure: {listed(before.keys() ^ names)}",
            rule="a merged model has the base model's parameters; weights that are tied stay so",
            fix="train with ensure_weight_tying, or check that base and adapter belong together",
        )
    for name, parameter in merged.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    after = _digests(merged)
    changed = {name for name in before if before[name] != after[name]}
    check_changes(changed, targets, [name for name, must in targets.items() if must])
    difference, largest = check_logits(expected, sample_logits(merged, ids), merged.dtype)
    merged.save_pretrained(folder)
    notes = () if changed else ("the adapter changes nothing: all its updates are zero",)
    return Outcome(tuple(sorted(targets)), difference, largest, notes)


def _check_possible(job: MergeJob) -> None:
    """Raises: ConfigError, EnvironmentProblem."""
    if len(job.adapters) > 1 or job.precision != ORIGINAL:
        raise ConfigError(
            f"{job.adapters[-1].folder} can only be merged in memory",
            rule="in memory one adapter is merged, into the base as it is stored",
            fix="merge one adapter at a time (--base takes the result of the one before), "
            "without --base-precision",
        )
    needed, available = int(_MEMORY_FACTOR * job.num_bytes), memory_available_bytes()
    if needed > available:
        raise EnvironmentProblem(
            f"merging in memory needs {needed / _GIB:.1f} GiB, {available / _GIB:.1f} GiB are free",
            rule="the whole base model is loaded",
            fix="merge on a machine with more memory",
        )


def _add_tokens(model: PreTrainedModel, adapter: Adapter, num_tokens: int) -> None:
    """Give the embeddings the rows that training added; the adapter brings their values.

    Raises: ConfigError when the tokenizer has no such tokens: the base is another model.
    """
    name = next(n for n, m in model.named_modules() if m is model.get_input_embeddings())
    stored = {tensor.name: tensor for tensor in adapter.weights.tensors}
    embedding = stored.get(f"base_model.model.{name}.weight")
    rows = model.get_input_embeddings().weight.shape[0]
    if embedding is None or embedding.num_rows == rows:
        return
    if not rows < num_tokens <= embedding.num_rows:
        raise ConfigError(
            f"the adapter's vocabulary has {embedding.num_rows} rows, the base's {rows}, the "
            f"tokenizer {num_tokens} tokens",
            rule="rows are added for tokens that the adapter's tokenizer has and the base lacks",
            fix="give the base model it was trained on with --base, and keep its tokenizer beside "
            "the adapter",
        )
    model.resize_token_embeddings(embedding.num_rows, mean_resizing=False)


def _load_base(job: MergeJob) -> PreTrainedModel:
    with explaining_load(job.name, field="base model"):
        loaded: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
            str(job.folder),
            dtype=job.chosen_dtype or "auto",
            trust_remote_code=job.trusted,
            output_loading_info=True,
        )
    model, told = loaded
    if told["missing_keys"]:  # transformers makes them up, and only warns
        raise ConfigError(
            f"the base model {job.name} lacks {listed(told['missing_keys'])}",
            rule="a base model has all of its weights",
            fix="copy or download it again",
        )
    return model


def _merged(adapted: PeftModel) -> PreTrainedModel:
    try:
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:  # PEFT's check for not-a-number
        raise TrainingFailed(
            f"the adapter cannot be merged: {error}",
            rule="every merged weight is finite",
            fix="merge an earlier checkpoint: RUN/checkpoints/step-N",
        ) from error
    return merged


def _check_adapter_tensors(adapted: PeftModel, adapter: Adapter) -> None:
    """Check that every tensor of the file sits in the model, bit for bit, and none is missing.

    PEFT itself only warns.
    Raises: TrainingFailed for tensors left over, absent or changed.
    """
    in_model = get_peft_model_state_dict(adapted)
    stored: dict[str, StoredTensor] = {tensor.name: tensor for tensor in adapter.weights.tensors}
    unused = sorted(stored.keys() - in_model.keys())
    absent = sorted(in_model.keys() - stored.keys())
    changed = sorted(
        name
        for name in stored.keys() & in_model.keys()
        if not torch.equal(stored[name].read().to(in_model[name].dtype), in_model[name])
    )
    for names, what in (
        (unused, "not used by this base model"),
        (absent, "missing from the file"),
        (changed, "not loaded as stored"),
    ):
        if names:
            raise TrainingFailed(
                f"{len(names)} adapter tensors are {what}: {listed(names)}",
                rule="every tensor of an adapter goes into the merged model, exactly once",
                fix="check that the base model and the adapter belong together",
            )


def _targeted_parameters(adapted: PeftModel) -> dict[str, bool]:
    """Name the base parameters a merge may change; True where it must (the update is not zero)."""
    targets: dict[str, bool] = {}
    bias = adapted.peft_config["default"].to_dict()["bias"]
    root = adapted.get_base_model()
    for name, module in root.named_modules():
        if isinstance(module, LoraLayer):
            # Wrappers of several parameters of one module sit on one another.
            adapted_name = getattr(module, "parameter_name", "weight")
            targets[f"{name.replace('.base_layer', '')}.{adapted_name}"] = _has_update(module)
            if bias != "none":
                targets[f"{name}.bias"] = False
        if isinstance(module, TrainableTokensWrapper):
            targets[f"{name}.weight"] = False
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


def _digests(model: nn.Module) -> dict[str, bytes]:
    """Hash every parameter's bytes: a second copy of the base would not fit beside a large one."""
    return {
        name: hashlib.blake2b(
            parameter.detach().contiguous().view(torch.uint8).numpy().data, digest_size=16
        ).digest()
        for name, parameter in model.named_parameters()
    }


def _has_update(module: LoraLayer) -> bool:
    """Tell whether B A can be non-zero (linear layers and embeddings keep them apart)."""
    if "default" in module.lora_A:
        factors = [module.lora_A["default"].weight, module.lora_B["default"].weight]
    else:
        factors = [module.lora_embedding_A["default"], module.lora_embedding_B["default"]]
    return all(torch.count_nonzero(factor) > 0 for factor in factors)
