"""Settings about answers, safety, growing ranks and publishing that contradict others. PURE."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config_checks import Contradiction, changed
from trainer.config_schema import Config

_ADAM = ("adamw_torch", "adamw_torch_fused")


def find_unwatched(config: Config) -> Iterator[Contradiction]:
    """List what could not be measured, or would be ignored."""
    yield from _samples(config)
    yield from _safety(config)
    yield from _progressive_ranks(config)
    yield from _hub(config)


def _samples(config: Config) -> Iterator[Contradiction]:
    if config.samples.prompts:
        return
    for name in changed(config.samples):
        yield Contradiction(
            (f"samples.{name}",),
            f"`samples.{name}` would be ignored: there are no `samples.prompts`; give some, or "
            "drop it",
        )


def _safety(config: Config) -> Iterator[Contradiction]:
    safety = config.safety
    if safety.enabled:
        if safety.rules is not None and safety.checker != "rules":
            yield Contradiction(
                ("safety.rules", "safety.checker"),
                f"`safety.rules` would be ignored: `safety.checker` is {safety.checker}, which has "
                "its own; drop one",
            )
        if not safety.prompts:
            yield Contradiction(
                ("safety.prompts",), "`safety.prompts` is empty; name some, or write medical"
            )
        return
    for name in changed(safety):
        yield Contradiction(
            (f"safety.{name}", "safety.enabled"),
            f"`safety.{name}` would be ignored: `safety.enabled` is false; set it to true, or drop "
            f"`safety.{name}`",
        )
    for figure in config.merge.require:
        if figure.startswith("safety."):
            yield Contradiction(
                (f"merge.require.{figure}", "safety.enabled"),
                f"`merge.require.{figure}` could never be met: `safety.enabled` is false, so it is "
                "not measured; set it to true, or drop it",
            )


def _progressive_ranks(config: Config) -> Iterator[Contradiction]:
    lora, path = config.lora, "lora.progressive_ranks"
    ranks = list(lora.progressive_ranks)
    if not ranks or not lora.enabled:
        return
    if ranks != sorted(set(ranks)) or ranks[-1] != lora.r or len(ranks) < 2:
        yield Contradiction(
            (path, "lora.r"),
            f"`{path}` is {ranks} and `lora.r` is {lora.r}: it must hold two ranks or more, "
            "ascending, the last one `lora.r`",
        )
    if lora.rank_pattern or lora.alpha_pattern:
        yield Contradiction(
            (path, "lora.rank_pattern", "lora.alpha_pattern"),
            f"`{path}` grows all layers alike, so `lora.rank_pattern` and `lora.alpha_pattern` "
            "cannot be kept; drop one",
        )
    if config.training.optimizer not in _ADAM:
        yield Contradiction(
            (path, "training.optimizer"),
            f"`{path}` prepares the optimizer for new columns, which {config.training.optimizer} "
            f"does not allow; write {' or '.join(_ADAM)}",
        )
    steps = config.training.max_steps
    if steps is not None and steps < len(ranks):
        yield Contradiction(
            (path, "training.max_steps"),
            f"`{path}` has {len(ranks)} ranks for {steps} steps: each needs one; raise "
            "`training.max_steps`",
        )


def _hub(config: Config) -> Iterator[Contradiction]:
    hub = config.hub
    if hub.repository is None:
        for name in changed(hub):
            yield Contradiction(
                (f"hub.{name}",),
                f"`hub.{name}` would be ignored: there is no `hub.repository`; give one, or drop "
                "it",
            )
    elif not config.lora.enabled:
        yield Contradiction(
            ("hub.repository", "lora.enabled"),
            "`hub.repository` is given and `lora.enabled` is false: adapters and merged models are "
            "pushed; push model/ by hand (hf upload)",
        )
    elif hub.content == "merged" and not config.merge.after_training:
        yield Contradiction(
            ("hub.content", "merge.after_training"),
            "`hub.content` is merged but `merge.after_training` is false: there would be nothing "
            "to push; set it to true",
        )
