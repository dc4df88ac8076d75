"""Sections about what is watched while a model learns: its answers, and whether they are safe."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictBool, StrictFloat, StrictStr

from trainer.config_types import PositiveFloat, PositiveInt, Section

Prompts = StrictStr | tuple[StrictStr, ...]
TopP = Annotated[StrictFloat, Field(gt=0, le=1)]


class SamplesConfig(Section):
    """Answers to the same prompts at every evaluation, to samples.jsonl."""

    prompts: Prompts = ()
    """Prompts, or a file of them (.txt, a prompt a line; .yaml, a list), or `medical`. None: no
    samples."""
    max_new_tokens: PositiveInt = 128
    """Longest answer in tokens."""
    temperature: PositiveFloat = 0.7
    """Of the answer that is drawn at random; the other one is greedy."""
    top_p: TopP = 0.9
    """It is drawn from the likeliest tokens that have this probability together."""


class SafetyConfig(Section):
    """Whether answers to delicate prompts are safe, at every evaluation, to safety.jsonl."""

    enabled: StrictBool = False
    """Answer and check the prompts below."""
    prompts: Prompts = "medical"
    """Prompts, or a file of them (.txt, a prompt a line; .yaml, a list), or `medical`, the built-in
    set."""
    checker: StrictStr = Field(default="rules", min_length=1)
    """`rules`, or your own as `package.module.name`: see docs/safety.md."""
    rules: StrictStr | None = None
    """YAML file of rules. Default: the built-in medical ones."""
    max_new_tokens: PositiveInt = 128
    """Longest answer in tokens."""
