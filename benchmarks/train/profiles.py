"""The three length profiles, made of the real texts in examples/data. PURE but for reading them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Message = dict[str, str]
CountTokens = Callable[[str], int]

PAD_STEP = 64
_SEED = 7
_TURN_TOKENS = 5  # a turn's own marks in a ChatML template
_HEAD_TOKENS = 20  # the default system turn
# Lognormal, in tokens: half the rows are shorter than the median, one in a hundred is cut.
_MEDIAN, _SIGMA, _SHORTEST = 160.0, 0.9, 32
_LONGEST = 1024


@dataclass(frozen=True)
class Profile:
    """What rows look like, and how many make a step and a round."""

    name: str
    about: str
    make: Callable[[Sequence[Sequence[Message]], int, CountTokens], list[Row]]
    max_length: int
    examples_per_step: int
    steps_per_round: int


def read_chats(folder: Path) -> list[list[Message]]:
    """Read both example files, each row as a chat; a repeated row counts once."""
    rows = [
        json.loads(line)
        for name in ("support_chats.jsonl", "medical_qa.jsonl")
        for line in (folder / name).read_text(encoding="utf-8").splitlines()
    ]
    chats = [
        row.get("messages")
        or [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["response"]},
        ]
        for row in rows
    ]
    return list({json.dumps(chat): chat for chat in chats}.values())


def short_rows(
    chats: Sequence[Sequence[Message]], num_rows: int, _count_tokens: CountTokens
) -> list[Row]:
    """Take real chats as they are."""
    chosen = random.Random(_SEED).sample(range(len(chats)), min(num_rows, len(chats)))
    return [{"messages": list(chats[chosen[i % len(chosen)]])} for i in range(num_rows)]


def long_tailed_rows(
    chats: Sequence[Sequence[Message]], num_rows: int, count_tokens: CountTokens
) -> list[Row]:
    """Join real turns into chats of lognormal length, up to the longest."""
    generator = random.Random(_SEED)
    rows: list[Row] = []
    for _ in range(num_rows):
        wanted = generator.lognormvariate(math.log(_MEDIAN), _SIGMA)
        wanted = min(max(wanted, _SHORTEST), _LONGEST)
        messages: list[Message] = []
        tokens = _HEAD_TOKENS
        while tokens < wanted:
            for message in generator.choice(chats):
                messages.append(message)
                tokens += count_tokens(message["content"]) + _TURN_TOKENS
        rows.append({"messages": messages})
    return rows


def full_rows(
    chats: Sequence[Sequence[Message]], num_rows: int, count_tokens: CountTokens
) -> list[Row]:
    """Join real texts to more than the longest row holds; every token carries a label."""
    generator = random.Random(_SEED)
    rows: list[Row] = []
    for _ in range(num_rows):
        texts: list[str] = []
        tokens = 0
        while tokens < _LONGEST + PAD_STEP:
            texts += [message["content"] for message in generator.choice(chats)]
            tokens = count_tokens("\n".join(texts))
        rows.append({"text": "\n".join(texts)})
    return rows


PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("short", "real short chats, answers labelled", short_rows, 1024, 16, 4),
        Profile(
            "long-tailed",
            "chats of real turns, lognormal lengths up to 1024, answers labelled",
            long_tailed_rows,
            1024,
            16,
            4,
        ),
        Profile("full", "real text, 1024 tokens in every row, all labelled", full_rows, 1024, 8, 1),
    )
}
