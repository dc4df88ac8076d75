"""The training benchmark: what it chooses, counts and prints, and that it compares equal work."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.train import figures, parity, tables
from benchmarks.train.__main__ import choose_ways
from benchmarks.train.actions import Actions
from benchmarks.train.peers import padded
from benchmarks.train.prepared import set_up, spread_over_lengths
from benchmarks.train.processes import ROOT
from benchmarks.train.profiles import PROFILES, read_chats
from benchmarks.train.rows import load_examples, save_examples, to_example
from benchmarks.train.search import best_trial, next_trial
from benchmarks.train.setup import Setup
from benchmarks.train.ways import OURS, WAYS, Choice, Rows, training_bytes
from tests.tiny import make_model_folder

CHATS = read_chats(ROOT / "examples" / "data")


def count_words(text: str) -> int:
    return len(text.split())


# -- rows -----------------------------------------------------------------------------------------


def test_short_rows_are_real_chats_and_differ() -> None:
    rows = PROFILES["short"].make(CHATS, 64, count_words)
    assert all(row["messages"] in CHATS for row in rows)
    assert len({json.dumps(row) for row in rows}) == 64


def test_long_tailed_rows_have_a_tail() -> None:
    rows = PROFILES["long-tailed"].make(CHATS, 400, count_words)
    words = [sum(count_words(m["content"]) + 5 for m in row["messages"]) + 20 for row in rows]
    assert 130 < np.median(words) < 210
    assert np.mean(words) > 1.2 * np.median(words)
    assert max(words) > 5 * np.median(words)


def test_full_rows_hold_more_than_the_longest_row() -> None:
    rows = PROFILES["full"].make(CHATS, 8, count_words)
    assert min(count_words(row["text"]) for row in rows) > 1024
    assert len({row["text"] for row in rows}) == 8


def test_rows_are_the_same_every_time() -> None:
    for profile in PROFILES.values():
        assert profile.make(CHATS, 8, count_words) == profile.make(CHATS, 8, count_words)


def test_the_rows_of_the_compared_step_are_as_long_as_the_whole() -> None:
    lengths = [*range(100, 0, -1)]
    chosen = [lengths[index] for index in spread_over_lengths(lengths, 4)]
    assert chosen == [13, 38, 63, 88]
    assert sorted(spread_over_lengths(lengths, 100)) == [*range(100)]


def test_examples_survive_the_file(tmp_path: Path) -> None:
    examples = [
        {"input_ids": [5, 6, 7], "labels": [-100, -100, 7]},
        {"input_ids": [8], "labels": [-100]},
    ]
    save_examples(tmp_path / "rows.npz", examples)
    assert load_examples(tmp_path / "rows.npz") == examples


def test_the_first_token_is_never_a_target() -> None:
    ids, mask = np.array([5, 6, 7], np.int32), np.array([True, False, True])
    assert to_example(ids, mask) == {"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}


def test_padding_carries_neither_attention_nor_labels() -> None:
    rows = [{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7], "labels": [-100]}]
    batch = padded(rows, at_least=3)
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, -100], [-100, -100, -100]]


# -- the search for a peer's best settings --------------------------------------------------------


def search(seconds: Mapping[tuple[str, int], float | None], largest: int = 16) -> list[Choice]:
    tried: dict[Choice, float | None] = {}
    while (choice := next_trial(tried, largest)) is not None:
        tried[choice] = seconds[choice.attention, choice.batch]
    return list(tried)


def test_batches_go_up_until_one_is_clearly_slower() -> None:
    seconds = {
        **{("sdpa", batch): value for batch, value in [(1, 5.0), (2, 4.0), (4, 4.2), (8, 4.6)]},
        **{("eager", batch): value for batch, value in [(1, 3.0), (2, None)]},
    }
    tried = search(seconds)
    assert [(choice.attention, choice.batch) for choice in tried] == [*seconds]
    assert best_trial({choice: seconds[choice.attention, choice.batch] for choice in tried}) == (
        Choice("eager", 1)
    )


def test_no_batch_is_larger_than_a_step() -> None:
    seconds = {(attention, batch): 1.0 for attention in ("sdpa", "eager") for batch in (1, 2)}
    assert len(search(seconds, largest=3)) == 4


def test_nothing_that_ran_gives_no_choice() -> None:
    assert best_trial({Choice("sdpa", 1): None}) is None


ROWS = Rows(examples_per_step=16, steps_per_round=4, max_length=1024, longest=1000, mean=250.0)
SHAPE = {"vocab_size": 50_000, "num_hidden_layers": 30, "num_attention_heads": 9}


def test_memory_is_estimated_by_what_grows_with_the_batch() -> None:
    def gib(way: str, attention: Any, batch: int) -> float:
        return training_bytes(WAYS[way], Choice(attention, batch), ROWS, SHAPE) / 2**30

    assert gib("trainer-grouped", "sdpa", 16) == pytest.approx(16_000 * 50_000 * 12 / 2**30)
    assert gib("trl", "sdpa", 16) == 0  # it never holds all logits
    assert gib("trl", "eager", 16) == pytest.approx(30 * 9 * 16 * 1000**2 * 8 / 2**30)
    assert gib("trl-padding-free", "eager", 16) == pytest.approx(30 * 9 * 4000**2 * 8 / 2**30)


def test_a_packed_step_has_as_many_tokens_as_the_others() -> None:
    assert ROWS.units_of_step(WAYS["trl-packing"]) == 4
    assert ROWS.units_of_step(WAYS["trl"]) == 16


def test_ways_without_their_library_are_left_out_with_the_reason() -> None:
    ways, reasons = choose_ways([OURS, "trl"], has_trl=False)
    assert ways == [OURS]
    assert len(reasons) == 1 and "no trl" in reasons[0]
    assert choose_ways([OURS, "trl"], has_trl=True) == ([OURS, "trl"], [])


# -- figures and tables ---------------------------------------------------------------------------


def test_a_way_is_warm_when_two_rounds_agree_or_three_are_done() -> None:
    assert not figures.is_warm([9.0])
    assert not figures.is_warm([9.0, 5.0])
    assert figures.is_warm([9.0, 8.2])
    assert figures.is_warm([9.0, 5.0, 2.0])


def test_what_is_paid_once_is_what_the_warm_up_took_longer() -> None:
    assert figures.one_time_seconds([9.0, 5.0], [2.0, 3.0, 4.0]) == 8.0
    assert figures.one_time_seconds([2.0], [3.0]) == 0.0


def test_ratios_are_of_the_medians_with_the_range_of_pairs() -> None:
    spread = figures.ratios([2.0, 4.0, 5.0], [6.0, 8.0, 10.0])
    assert (spread.median, spread.lowest, spread.highest) == (2.0, 2.0, 3.0)


def test_rounding_is_equal_and_more_is_not() -> None:
    noise = {"loss": 0.0, "gradients": 0.05, "worst": 0.1}
    assert figures.is_equal({"loss": 0.007, "gradients": 0.07, "worst": 0.19}, noise)
    assert not figures.is_equal({"loss": 0.009, "gradients": 0.07, "worst": 0.19}, noise)
    assert not figures.is_equal({"loss": 0.0, "gradients": 0.08, "worst": 0.19}, noise)


def result(**problems: str) -> dict[str, Any]:
    """Two peers; the padded one is the slower."""
    rounds = {OURS: [1.0, 2.0], "trainer-padded": [8.0, 8.0], "trainer-grouped": [3.0, 3.0]}
    ways = [
        {
            "way": name,
            "problem": problems.get(name),
            "choice": None if name == OURS else {"attention": "sdpa", "batch": 2},
            "parity": {"loss": 0.001, "gradients": 0.05},
            "is_equal": name != "trainer-padded",
            "versions": {"torch": "2.0"},
            "start_seconds": 5.0,
            "warm_up": [4.0],
            "rounds": [] if name in problems else seconds,
            "tokens": 1200,
            "peak_bytes": 2**30,
            "children_bytes": 0,
        }
        for name, seconds in rounds.items()
    ]
    profile = {
        "about": "rows",
        "rows": {"steps_per_round": 1, "examples_per_step": 2, "mean": 600, "longest": 700},
        "tokens": 1200,
        "labels": 600,
        "noise": {"loss": 0.001, "gradients": 0.04},
        "allowed": {"loss": 0.008, "gradients": 0.06},
        "ways": ways,
    }
    machine = {"processor": "P", "cores": 2, "threads": 2, "memory_gib": 1, "commit": "c"}
    machine |= {"instructions": [], "system": "S", "python": "3"}
    return {
        "date": "2000-01-01",
        "model": "m",
        "machine": machine,
        "left_out": [],
        "profiles": {"short": profile},
    }


def test_the_table_compares_with_the_fastest_peer_and_marks_what_differs() -> None:
    rows = tables.profile_table(result()["profiles"]["short"])[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[2:5] for row in cells] == [
        ["900 (600 to 1,200)", "2.00 (1.50 to 3.00)", "450"],
        ["150 (150 to 150)", "0.38 (0.38 to 0.38)", "75"],
        ["400 (400 to 400)", "1.00 (1.00 to 1.00)", "200"],
    ]
    assert [row[6] for row in cells] == ["8", "5", "6"]
    assert ["(!)" in row[-1] for row in cells] == [False, True, False]


def test_a_way_that_failed_is_named_with_the_reason() -> None:
    lines = tables.profile_table(result(**{OURS: "no memory"})["profiles"]["short"])
    assert len(lines) == 2 + 2 + 1
    assert "RankZero: no memory" in lines[-1]


def test_a_result_replaces_what_stands_between_the_marks() -> None:
    text = "before <!-- train: begin -->\nold\n<!-- train: end --> after"
    once = tables.between_marks(text, tables.sections(result()))
    assert "old" not in once and once.startswith("before ") and once.endswith(" after")
    assert tables.between_marks(once, tables.sections(result())) == once
    with pytest.raises(ValueError, match="train: begin"):
        tables.between_marks("no marks", [])


# -- the same work --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """A tiny model and short rows, with the reference beside them."""
    folder = tmp_path_factory.mktemp("bench")
    model = make_model_folder(folder / "model")
    profile = dataclasses.replace(PROFILES["short"], max_length=512, examples_per_step=4)
    setup, _ = set_up(profile, model, folder, steps=2)
    yield setup


@pytest.fixture(scope="module")
def noise(setup: Setup) -> dict[str, float]:
    return Actions(setup, WAYS["trainer-padded"], 0.0).reference()


def test_prepared_rows_are_those_of_a_round(setup: Setup) -> None:
    assert len(load_examples(Path(setup.examples))) == 8
    assert len(load_examples(Path(setup.step_examples))) == 4


@pytest.mark.parametrize("name", [OURS, "trainer-padded", "trainer-grouped"])
def test_every_way_has_the_reference_s_loss_and_gradients(
    name: str, setup: Setup, noise: dict[str, float]
) -> None:
    choice = None if name == OURS else Choice("sdpa", 2)
    found = Actions(setup, WAYS[name], 0.0).parity(choice)
    assert figures.is_equal(found, noise), (found, noise)


def test_other_gradients_are_seen(setup: Setup, noise: dict[str, float]) -> None:
    stored = torch.load(setup.reference)
    gradients: parity.Gradients = stored["gradients"]
    assert figures.is_equal(parity.compare(stored["loss"], gradients, setup.reference), noise)
    doubled = {name: 2 * values for name, values in gradients.items()}
    assert not figures.is_equal(parity.compare(stored["loss"], doubled, setup.reference), noise)
    del gradients[next(iter(gradients))]
    assert "problem" in parity.compare(stored["loss"], gradients, setup.reference)


@pytest.mark.parametrize("name", [OURS, "trainer-grouped"])
def test_a_round_trains_on_every_row_once(name: str, setup: Setup) -> None:
    told: list[Mapping[str, Any]] = []
    words = iter([True, True, False])
    choice = None if name == OURS else Choice("sdpa", 2)
    actions = Actions(setup, WAYS[name], 0.0)
    assert actions.train(choice, told.append, lambda: next(words)) == {"ended": True}
    ready, *rounds = told
    tokens = sum(len(example["input_ids"]) for example in load_examples(Path(setup.examples)))
    assert ready["steps_per_round"] == 2
    assert [answer["tokens"] for answer in rounds] == [tokens, tokens]
    assert all(answer["seconds"] > 0 and answer["peak_bytes"] > 0 for answer in rounds)
