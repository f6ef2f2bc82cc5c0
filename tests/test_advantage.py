"""Group advantages."""

from statistics import fmean, pstdev
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.advantage import ADVANTAGES, dr_grpo, grpo
from trainer.config import AdvantageName

rewards = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=2, max_size=12)


def test_every_name_of_the_configuration_has_a_function():
    assert set(ADVANTAGES) == set(get_args(AdvantageName))


def test_grpo_by_hand():
    assert grpo([1, 0, 0, 1]) == [1, -1, -1, 1]
    assert grpo([1, 0, 0, 0]) == pytest.approx([3**0.5, *[-(3**-0.5)] * 3])


def test_dr_grpo_by_hand():
    assert dr_grpo([1, 0, 0, 0]) == [0.75, -0.25, -0.25, -0.25]


def test_equal_rewards_have_no_advantage():
    assert grpo([0.1] * 3) == [0, 0, 0]
    assert dr_grpo([0.1] * 3) == pytest.approx([0, 0, 0])


@given(rewards)
def test_grpo_has_mean_zero_and_deviation_one(values):
    advantages = grpo(values)
    assert fmean(advantages) == pytest.approx(0, abs=1e-9)
    assert pstdev(advantages) == pytest.approx(1 if len(set(values)) > 1 else 0)


@given(rewards, st.integers(1, 9), st.integers(-9, 9))
def test_grpo_does_not_depend_on_the_scale_of_the_rewards(values, scale, shift):
    assert grpo([scale * v + shift for v in values]) == pytest.approx(grpo(values), abs=1e-9)


@given(rewards, st.integers(-9, 9))
def test_dr_grpo_keeps_differences_of_rewards(values, shift):
    advantages = dr_grpo([v + shift for v in values])
    for a, v in zip(advantages, values, strict=True):
        assert a - advantages[0] == pytest.approx(v - values[0])
