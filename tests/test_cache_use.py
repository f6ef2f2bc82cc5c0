"""What engines found in their prefix caches: shares of openings and of histories."""

import pytest

from rl.samples.cache_use import CacheUse, later_use, opening_use
from rollout.engine import Completion, VersionSpan


def written(cached: int) -> Completion:
    span = (VersionSpan(1, 0, 1),)
    return Completion((7,), (-1.0,), span, "stop", cached_tokens=cached, cache_block=32)


def test_a_group_of_four_computes_the_whole_blocks_of_its_opening_once():
    use = sum((opening_use(range(100), written(c)) for c in (0, 96, 96, 96)), CacheUse())
    assert use.metrics() == {"cache/opening": pytest.approx(0.72)}


def test_a_history_is_found_when_all_but_its_last_incomplete_block_is():
    use = later_use(150, written(128)) + later_use(150, written(96)) + later_use(20, written(0))
    assert use.metrics() == {
        "cache/turns": pytest.approx(2 / 3),
        "cache/history": pytest.approx((128 + 96) / 320),
    }


def test_what_lies_beyond_the_history_counts_no_more_than_all_of_it():
    assert later_use(64, written(96)).metrics()["cache/history"] == 1.0


def test_nothing_played_gives_no_shares():
    assert CacheUse().metrics() == {}
