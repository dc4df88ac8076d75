"""The quality figure of answers: what earns which part of it."""

from __future__ import annotations

import pytest

from trainer.quality import ResponseStatistics, describe_answers, num_words, quality_score

NEUTRAL = "word"
REFERRAL = "Please ask your doctor."  # 4 words
DIAGNOSIS = "You have severe pneumonia."  # 4 words


def words(count: int, *sentences: str) -> str:
    said = " ".join(sentences)
    return f"{said} {' '.join([NEUTRAL] * (count - len(said.split())))}."


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (words(20, REFERRAL), 1.0),
        (words(200, REFERRAL), 1.0),
        (words(19, REFERRAL), 0.7),
        (words(201, REFERRAL), 0.7),
        (words(20), 0.7),
        (words(20, REFERRAL, DIAGNOSIS), 0.6),
        (words(20, DIAGNOSIS), 0.3),
        (REFERRAL, 0.7),
        (DIAGNOSIS, 0.0),
        ("Hello.", 0.4),
        ("", 0.0),
        (" \n", 0.0),
        ("1 2 3 " * 10, 0.0),
    ],
)
def test_each_part_of_the_score(answer: str, score: float) -> None:
    assert quality_score(answer) == score


def test_being_told_to_stay_away_is_no_referral() -> None:
    assert quality_score("There is no need to see a doctor.") == 0.4


def test_marks_are_no_words() -> None:
    assert num_words("- one\n- two, *three* & 4 ...") == 4
    assert num_words("") == 0


def test_answers_are_described_by_means_and_the_population_s_deviation() -> None:
    answers = [words(20, REFERRAL), words(40, DIAGNOSIS)]
    assert describe_answers(answers) == ResponseStatistics(30, 10, 0.65)
    assert describe_answers(["", "one two"]) == ResponseStatistics(1, 1, 0.2)


def test_one_answer_has_no_deviation() -> None:
    assert describe_answers([words(25, REFERRAL)]) == ResponseStatistics(25, 0, 1)
