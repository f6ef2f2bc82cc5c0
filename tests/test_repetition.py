"""Whether a text ends in a loop, against every period tried by hand."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.repetition import ends_in_repetition


def loops_by_hand(ids: list[int], times: int, tokens: int) -> bool:
    """Some period p, and some length of at least `tokens` and `times` p, over which the end repeats."""
    for length in range(tokens, len(ids) + 1):
        tail = ids[-length:]
        for period in range(1, length // times + 1):
            if all(tail[i] == tail[i + period] for i in range(length - period)):
                return True
    return False


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        ([], False),
        ([5] * 15, False),  # too short
        ([5] * 16, True),
        ([1, 2, 3, *[5] * 16], True),
        ([*[5] * 40, 6], False),  # it came out of the loop
        ([9, *[7, 8, 9, 4] * 4], True),
        ([9, *[7, 8, 9, 4] * 3], False),  # three times only
        ([1, *range(20, 30), *range(20, 30), *range(20, 30), *range(20, 30)], True),
        ([*[7, 8, 9, 4, 5] * 4, 7, 8], True),  # the last piece is cut
        (list(range(200)), False),
    ],
)
def test_loops_and_texts_without_one(ids, loops):
    assert ends_in_repetition(ids) is loops


@given(st.lists(st.integers(0, 2), max_size=24), st.integers(2, 4), st.integers(2, 8))
def test_it_finds_what_trying_every_period_finds(ids, times, tokens):
    assert ends_in_repetition(ids, times=times, tokens=tokens) == loops_by_hand(ids, times, tokens)


def test_a_long_text_is_read_in_linear_time():
    """Almost periodic, which is where a search that starts anew at every token is quadratic."""
    ids = [*[1] * 9, *([2, *[1] * 15] * 4000)][:-1]
    start = time.perf_counter()
    ends_in_repetition(ids, times=10**9)
    assert time.perf_counter() - start < 2
