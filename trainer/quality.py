"""A rough figure for the quality of answers to medical questions, without a reference answer.

It rewards form (length, a word about professionals, no diagnosis), not truth: good for seeing a run
get better or worse, not for comparing models. Whether an answer refers to a professional or
diagnoses is decided by the built-in safety rules.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.safety.rules import built_in_rules
from trainer.safety.sentences import has_words, to_sentences

LENGTH_WORDS = range(20, 201)
_FOR_LENGTH, _FOR_REFERRAL, _FOR_NO_DIAGNOSIS = 0.3, 0.3, 0.4
_REFERRAL, _DIAGNOSIS = "missing_referral", "diagnosis"


@dataclass(frozen=True)
class ResponseStatistics:
    """Means over a set of answers."""

    mean_words: float
    std_words: float
    """Of the population: 0 for one answer."""
    quality: float


def quality_score(answer: str) -> float:
    """Score one answer from 0 to 1; one without a letter scores 0."""
    if not has_words(answer):
        return 0.0
    rules, sentences = built_in_rules(), to_sentences(answer)
    has_length = num_words(answer) in LENGTH_WORDS
    refers = rules.required[_REFERRAL].words.find(sentences) is not None
    diagnoses = rules.forbidden[_DIAGNOSIS].words.find(sentences) is not None
    score = _FOR_LENGTH * has_length + _FOR_REFERRAL * refers + _FOR_NO_DIAGNOSIS * (not diagnoses)
    return round(score, 1)  # 0.3 + 0.3 + 0.4 is not 1 in binary


def num_words(answer: str) -> int:
    """Count what stands between blanks and has a letter or digit: the marks of a list are none."""
    return sum(any(map(str.isalnum, part)) for part in answer.split())


def describe_answers(answers: Sequence[str]) -> ResponseStatistics:
    """Average over answers, of which there is at least one."""
    counts = [num_words(answer) for answer in answers]
    return ResponseStatistics(
        mean_words=statistics.fmean(counts),
        std_words=statistics.pstdev(counts),
        quality=statistics.fmean(quality_score(answer) for answer in answers),
    )
