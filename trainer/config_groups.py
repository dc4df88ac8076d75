"""Spellings that mean something only together: `fp16` and `bf16`, `load_in_4bit` and its details.

PURE. A switch that is off (`use_wandb: false`) keeps its details quiet instead of making them an
error: files written for such switches keep the details in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from trainer.config_schema import Tracker
from trainer.config_values import RefusedError, to_claim

# Canonical setting -> its value and the spelling that value came from.
Combined = dict[str, tuple[Any, str]]


@dataclass(frozen=True)
class Group:
    """Spellings (with the setting each is about) and what those present mean together."""

    targets: Mapping[str, str]
    combine: Callable[[Mapping[str, Any], Mapping[str, Any]], Combined]


_PRECISIONS = {
    f"{prefix}{name}": precision
    for precision, names in {
        "bf16": ("bf16", "bfloat16"),
        "fp16": ("fp16", "float16", "half"),
        "fp32": ("fp32", "float32", "float"),
    }.items()
    for name in names
    for prefix in ("", "torch.")
}


def _combine_quantization(given: Mapping[str, Any], values: Mapping[str, Any]) -> Combined:
    switches = {
        key: to_claim(given[key]) for key in ("load_in_4bit", "load_in_8bit") if key in given
    }
    on = [key for key, value in switches.items() if value]
    if len(on) == 2:
        raise RefusedError("load_in_4bit and load_in_8bit are both true; keep one")
    own = values.get("model", {}).get("quantization")
    if not switches and own not in ("nf4", "fp4"):
        raise RefusedError("needs `load_in_4bit: true` beside it")
    found: Combined = {}
    if on == ["load_in_4bit"]:
        found["model.quantization"] = ("nf4", on[0])
    elif switches:
        # A switch that is off keeps its details quiet, as `use_wandb: false` does.
        return {"model.quantization": ("int8" if on else "none", (on or list(switches))[0])}
    if "bnb_4bit_quant_type" in given:
        found["model.quantization"] = (given["bnb_4bit_quant_type"], "bnb_4bit_quant_type")
    if "bnb_4bit_use_double_quant" in given:
        claim = to_claim(given["bnb_4bit_use_double_quant"])
        found["model.double_quantization"] = (claim, "bnb_4bit_use_double_quant")
    return found


def _combine_precision(given: Mapping[str, Any], _: Mapping[str, Any]) -> Combined:
    found: Combined = {}
    for key in ("torch_dtype", "dtype", "bnb_4bit_compute_dtype"):
        if key in given and given[key] != "auto":
            precision = _PRECISIONS.get(str(given[key]).lower())
            if precision is None:
                raise RefusedError(
                    f"{key} must be bfloat16, float16 or float32, not {given[key]!r}"
                )
            found[key] = (precision, key)
    switches = {key: given[key] for key in ("fp16", "bf16") if key in given}
    if switches:
        on = [key for key, value in switches.items() if value == "auto" or to_claim(value)]
        if len(on) == 2:
            raise RefusedError("fp16 and bf16 are both true; keep one")
        wanted = on[0] if on else "fp32"
        wanted = "auto" if on and switches[on[0]] == "auto" else wanted
        found["switch"] = (wanted, (on or list(switches))[0])
    if len({value for value, _ in found.values()}) > 1:
        says = ", ".join(f"{key} says {value}" for value, key in found.values())
        raise RefusedError(f"one run has one compute precision, but {says}; keep one")
    return {"training.precision": next(iter(found.values()))} if found else {}


def _combine_tracking(given: Mapping[str, Any], values: Mapping[str, Any]) -> Combined:
    chosen = _report_to(given["report_to"]) if "report_to" in given else None
    own = values.get("tracking", {}).get("to")
    found: Combined = {} if chosen is None else {"tracking.to": (chosen, "report_to")}
    if "wandb_project" in given:
        found["tracking.project"] = (given["wandb_project"], "wandb_project")
    listed = chosen if chosen is not None else own if isinstance(own, list) else []
    if "use_wandb" not in given:
        if "wandb_project" in given and "wandb" not in listed:
            raise RefusedError(
                "nothing is sent there; add `use_wandb: true`, or false to keep it quiet"
            )
        return found
    if not to_claim(given["use_wandb"]):
        if "wandb" in listed:
            raise RefusedError("use_wandb is false but the trackers name wandb; keep one")
        return found
    if own is None:
        trackers = ["tensorboard"] if chosen is None else chosen
        found["tracking.to"] = (list(dict.fromkeys([*trackers, "wandb"])), "use_wandb")
    elif "wandb" not in listed:
        raise RefusedError("use_wandb is true but tracking.to leaves wandb out; keep one")
    return found


def _report_to(value: Any) -> Any:
    if value in ("none", False, [], ["none"]):
        return []
    if value in ("all", ["all"]):
        return list(get_args(Tracker))
    return [value] if isinstance(value, str) else value


def _combine_schedule(given: Mapping[str, Any], _: Mapping[str, Any]) -> Combined:
    name, details = given.get("lr_scheduler_type"), given.get("lr_scheduler_kwargs", {})
    found: Combined = {}
    if name is not None:
        is_floored = name == "cosine_with_min_lr"
        found["training.scheduler"] = ("cosine" if is_floored else name, "lr_scheduler_type")
    if not isinstance(details, dict) or set(details) - {"min_lr_rate"}:
        raise RefusedError(
            f"lr_scheduler_kwargs may hold min_lr_rate alone, not {details!r}; "
            "write training.min_lr_ratio instead"
        )
    if "min_lr_rate" in details:
        found["training.min_lr_ratio"] = (details["min_lr_rate"], "lr_scheduler_kwargs")
    return found


def _combine_evaluation(given: Mapping[str, Any], values: Mapping[str, Any]) -> Combined:
    strategy = _strategy(given, ("eval_strategy", "evaluation_strategy"))
    steps: Combined = {}
    if "eval_steps" in given:
        steps = {"evaluation.every_steps": (given["eval_steps"], "eval_steps")}
    if strategy is None or strategy[0] == "steps":
        return steps
    if steps:
        raise RefusedError(f"eval_steps has no effect with {strategy[1]}: {strategy[0]}; drop one")
    if strategy[0] == "epoch":
        return {"evaluation.every_epochs": (1, strategy[1])}
    data = values.get("data", {})
    if strategy[0] == "no" and (data.get("validation") or data.get("validation_size")):
        raise RefusedError("there is validation data, which is then not used; drop one")
    if strategy[0] != "no":
        raise RefusedError(f"must be steps, epoch or no, not {strategy[0]!r}")
    return {}


def _combine_saving(given: Mapping[str, Any], _: Mapping[str, Any]) -> Combined:
    strategy = _strategy(given, ("save_strategy",))
    steps: Combined = {}
    if "save_steps" in given:
        steps = {"checkpoint.every_steps": (given["save_steps"], "save_steps")}
    if strategy is None or strategy[0] == "steps":
        return steps
    if strategy[0] != "epoch":
        raise RefusedError(
            f"{strategy[0]!r} is not possible: a run always saves, so that it can be continued; "
            "write steps or epoch"
        )
    if steps:
        raise RefusedError("save_steps has no effect with save_strategy: epoch; drop one")
    return {"checkpoint.every_epochs": (1, "save_strategy")}


def _strategy(given: Mapping[str, Any], names: tuple[str, ...]) -> tuple[Any, str] | None:
    for name in names:
        if name in given:
            # YAML 1.1 reads an unquoted `no` as false.
            return ("no" if given[name] is False else given[name]), name
    return None


def _about(target: str, *spellings: str) -> dict[str, str]:
    return dict.fromkeys(spellings, target)


GROUPS: tuple[Group, ...] = (
    Group(
        _about("model.quantization", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type")
        | _about("model.double_quantization", "bnb_4bit_use_double_quant"),
        _combine_quantization,
    ),
    Group(
        _about(
            "training.precision", "fp16", "bf16", "torch_dtype", "dtype", "bnb_4bit_compute_dtype"
        ),
        _combine_precision,
    ),
    Group(
        _about("tracking.to", "report_to", "use_wandb")
        | _about("tracking.project", "wandb_project"),
        _combine_tracking,
    ),
    Group(
        _about("training.scheduler", "lr_scheduler_type")
        | _about("training.min_lr_ratio", "lr_scheduler_kwargs"),
        _combine_schedule,
    ),
    Group(
        _about("evaluation.every_steps", "eval_steps", "eval_strategy", "evaluation_strategy"),
        _combine_evaluation,
    ),
    Group(
        _about("checkpoint.every_steps", "save_steps", "save_strategy"),
        _combine_saving,
    ),
)
