"""The batching promises: exact global batches, same examples on any hardware, room respected."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.data.batching import assign, curriculum_order, epochs_seen, examples_of_step, num_steps


def steps(count: int, *, n: int, g: int, seed: int = 0, **kwargs: object) -> list[list[int]]:
    return [
        examples_of_step(t, num_examples=n, global_batch_size=g, seed=seed, **kwargs).tolist()
        for t in range(count)
    ]


@pytest.mark.parametrize(("n", "g"), [(10, 3), (10, 10), (3, 10), (7, 1), (1, 4)])
def test_steps_are_full_and_every_epoch_shows_every_example_once(n: int, g: int) -> None:
    shown = [example for step in steps(5 * n, n=n, g=g) for example in step]
    assert all(len(step) == g for step in steps(5 * n, n=n, g=g))
    for epoch in range(len(shown) // n):
        assert sorted(shown[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_order_depends_on_seed_and_epoch_only() -> None:
    assert steps(6, n=20, g=7, seed=1) == steps(6, n=20, g=7, seed=1)
    assert steps(6, n=20, g=7, seed=1) != steps(6, n=20, g=7, seed=2)
    whole = steps(3, n=20, g=20, seed=1)
    assert whole[0] != whole[1]
    # Asking for a late step alone gives what walking there gives: position in the data is t.
    walked = steps(50, n=20, g=7)[49]
    assert steps(50, n=20, g=7)[49:] == [walked]


def test_curriculum_is_easy_first_in_every_epoch() -> None:
    order = curriculum_order(np.array([3.0, 1.0, 2.0, 1.0]))
    assert order.tolist() == [1, 3, 2, 0]
    assert steps(2, n=4, g=4, fixed_order=order) == [[1, 3, 2, 0]] * 2


def test_step_counts() -> None:
    assert num_steps(720, 3, 32) == 68  # 67.5, and no example is dropped
    assert num_steps(100, 0.29, 29) == 1  # 0.29 x 100 is 28.999999999999996 in floats
    assert epochs_seen(68, 720, 32) == pytest.approx(3.0222, abs=1e-4)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("max_examples", [None, 1, 3])
def test_assignment_covers_all_examples_within_limits(
    world_size: int, max_examples: int | None
) -> None:
    lengths = np.random.default_rng(0).lognormal(4, 1, 101).astype(np.int32).clip(1, 512)
    ranks = assign(lengths, world_size, 1024, max_examples)
    assert len(ranks) == world_size
    assert len({len(rank) for rank in ranks}) == 1  # K is equal everywhere
    micro_batches = [members for rank in ranks for members in rank]
    assert sorted(i for members in micro_batches for i in members) == list(range(101))
    assert all(int(lengths[members].sum()) <= 1024 for members in micro_batches)
    assert all(len(members) <= (max_examples or 101) for members in micro_batches)


def test_assignment_uses_as_few_micro_batches_as_fit_and_balances_them() -> None:
    lengths = np.random.default_rng(1).integers(20, 300, 256).astype(np.int32)
    ranks = assign(lengths, 4, 2048)
    lower_bound = -(-int(lengths.sum()) // (4 * 2048))
    assert len(ranks[0]) <= lower_bound + 1
    per_rank = [sum(int(lengths[m].sum()) for m in rank) for rank in ranks]
    assert max(per_rank) / min(per_rank) < 1.02


@pytest.mark.parametrize("max_examples", [None, 2])
def test_assignment_copes_with_examples_that_do_not_share(max_examples: int | None) -> None:
    lengths = np.random.default_rng(2).integers(300, 512, 30_000).astype(np.int32)
    ranks = assign(lengths, 2, 512, max_examples)
    assert [len(rank) for rank in ranks] == [15_000, 15_000]
    assert max(len(members) for rank in ranks for members in rank) == 1


def test_fewer_examples_than_ranks_leave_empty_micro_batches() -> None:
    ranks = assign(np.array([5, 7], np.int32), 4, 100)
    assert sorted(map(tuple, (m for rank in ranks for m in rank))) == [(), (), (0,), (1,)]


def test_an_example_longer_than_a_micro_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="300 tokens exceeds 256"):
        assign(np.array([10, 300], np.int32), 1, 256)
