"""Groups that are trained on again: which, for how long, and in what order."""

from collections import Counter

import pytest
from test_sample_queue import group

from rl.samples.reuse import ReuseBuffer


def replay(share: int = 2, max_staleness: int = 2) -> ReuseBuffer:
    return ReuseBuffer(share, max_staleness, seed=0)


def test_a_group_that_was_trained_on_comes_back_until_it_is_too_old():
    r = replay(share=9)
    groups = [group("a", 0), group("b", 1, 2), group("c", 2)]
    assert r.available == 0
    r.trained(groups, 2)
    assert r.groups == groups and r.available == 3
    r.trained([group("d", 2)], 3)
    assert [g.id for g in r.groups] == ["b", "c", "d"]
    with pytest.raises(AssertionError, match="reused group b is 3 versions old, 2 are allowed"):
        r.draw(3, 4)


def test_draws_are_of_different_groups_uniform_and_leave_them_there():
    r = replay(share=2)
    r.trained([group(name) for name in "abcd"], 1)
    drawn: Counter[str] = Counter()
    for _ in range(400):
        pair = r.draw(r.available, 1)
        assert len({g.id for g in pair}) == 2
        drawn.update(g.id for g in pair)
    assert all(150 < n < 250 for n in drawn.values()) and len(drawn) == 4


def test_a_mixed_batch_is_shuffled_and_one_without_reuse_keeps_its_order():
    r = replay()
    fresh, old = [group(f"f{i}") for i in range(6)], [group(f"o{i}") for i in range(2)]
    assert r.mix(fresh, []) == fresh
    places: Counter[int] = Counter()
    for _ in range(200):
        mixed = r.mix(fresh, old)
        assert sorted(g.id for g in mixed) == sorted(g.id for g in [*fresh, *old])
        places.update(i for i, g in enumerate(mixed) if g.id == "o0")
    assert len(places) == 8


def test_with_a_share_of_0_nothing_is_kept():
    r = replay(share=0)
    r.trained([group("a")], 1)
    assert (r.groups, r.available, r.draw(0, 1)) == ([], 0, [])
