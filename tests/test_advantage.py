"""Advantages against their definitions, and over turns against a sum written out."""

import math
import random
from statistics import fmean, pstdev

import pytest
from fakes import sample
from hypothesis import given
from hypothesis import strategies as st

from trainer.advantage import (
    BATCH_ADVANTAGES,
    CRITIC_ADVANTAGES,
    DISTILL,
    GROUP_ADVANTAGES,
    advantage_names,
    all_equal,
    batch_normalised,
    dr_grpo,
    gae,
    grpo,
    reinforce_pp,
    rloo,
)
from trainer.loss import LOSSES

rewards = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=2, max_size=12)


def test_every_name_of_the_configuration_is_of_a_group_or_the_learners():
    learners = {"reinforce_pp", "reinforce_pp_baseline", "gae"}
    assert set(BATCH_ADVANTAGES) | set(CRITIC_ADVANTAGES) == learners
    assert set(GROUP_ADVANTAGES) | learners | {DISTILL} == set(advantage_names())
    assert len(advantage_names()) == len(set(advantage_names()))
    assert {loss.advantage for loss in LOSSES.values()} <= set(advantage_names())


def test_grpo_by_hand():
    assert grpo([1, 0, 0, 1]) == [1, -1, -1, 1]
    assert grpo([1, 0, 0, 0]) == pytest.approx([3**0.5, *[-(3**-0.5)] * 3])


def test_dr_grpo_by_hand():
    assert dr_grpo([1, 0, 0, 0]) == [0.75, -0.25, -0.25, -0.25]


def test_equal_rewards_have_no_advantage():
    assert grpo([0.1] * 3) == [0, 0, 0]
    assert dr_grpo([0.1] * 3) == pytest.approx([0, 0, 0])
    assert rloo([0.1] * 3) == pytest.approx([0, 0, 0])
    assert reinforce_pp([0.1] * 3, [1, 2, 9]) == [0, 0, 0]


IN_TWO_ORDERS = [0.1 + 0.2 + 0.3, *[0.3 + 0.2 + 0.1] * 3]
ALMOST_EQUAL = {
    "sums in two orders": IN_TWO_ORDERS,
    "sums that should be 0": [0.1 + 0.2 - 0.3, 0.0, 0.0, 0.0],
    "large ones": [1e9 * r for r in IN_TWO_ORDERS],
    "negative ones": [-r for r in IN_TWO_ORDERS],
    "a judge in float32": [0.1, 0.10000000149011612, 0.1],
    "one alone": [0.7],
    "none": [],
}


@pytest.mark.parametrize("name", ALMOST_EQUAL)
def test_rewards_that_differ_by_rounding_are_equal_for_every_advantage(name):
    values = ALMOST_EQUAL[name]
    assert all_equal(values)
    nothing = [0.0] * len(values)
    assert grpo(values) == dr_grpo(values) == rloo(values) == nothing
    assert reinforce_pp(values, range(1, len(values) + 1)) == nothing


@pytest.mark.parametrize("values", [[0.0, 1e-6], [1.0, 1.0 + 1e-5], [1e6, 1e6 + 1], [-1e-3, 1e-3]])
def test_small_differences_of_rewards_are_differences(values):
    assert not all_equal(values)
    assert grpo(values) == pytest.approx([-1, 1], rel=1e-5)


def test_the_deviation_has_an_epsilon_and_is_the_populations():
    """By hand: the squares' mean over the members, and 1e-9 squared beside it."""
    values = [0.0, 4e-9]
    wanted = 2e-9 / math.sqrt(4e-18 + 1e-18)
    assert grpo(values) == pytest.approx([-wanted, wanted])
    assert reinforce_pp(values, [3, 3]) == pytest.approx([-wanted, wanted])
    assert grpo([2.0, 4.0, 9.0])[2] == pytest.approx(4 / math.sqrt((9 + 1 + 16) / 3))


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


@given(rewards)
def test_rloo_leaves_each_member_out_of_its_own_baseline(values):
    wanted = []
    for i in range(len(values)):
        others = [v for j, v in enumerate(values) if j != i]
        wanted.append(values[i] - fmean(others))
    assert rloo(values) == pytest.approx(wanted)


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(1, 6)), min_size=1, max_size=9))
def test_reinforce_pp_normalises_over_every_token_of_the_batch(batch):
    values, tokens = zip(*batch, strict=True)
    every = [float(v) for v, n in batch for _ in range(n)]
    mean, std = fmean(every), pstdev(every)
    wanted = [(v - mean) / std if std else 0.0 for v in values]
    assert reinforce_pp(values, tokens) == pytest.approx(wanted)


def test_a_batch_is_normalised_across_its_groups_on_policy_tokens_only():
    rng = random.Random(1)
    batch = [sample(f"s{i}", n, rng, reward=r) for i, (n, r) in enumerate([(9, 1.0), (20, 0.0)])]
    found = batch_normalised(batch)
    tokens = [s.num_policy_tokens for s in batch]
    wanted = reinforce_pp([1.0, 0.0], tokens)
    for s, before, advantage in zip(found, batch, wanted, strict=True):
        assert s.advantages == tuple(advantage if m else 0.0 for m in before.loss_mask)
        assert (s.id, s.token_ids, s.reward) == (before.id, before.token_ids, before.reward)
    assert sum(a for s in found for a in s.advantages) == pytest.approx(0, abs=1e-9)


unit = st.floats(0, 1)


pairs = st.tuples(st.floats(-5, 5), st.floats(-5, 5))


@given(st.lists(pairs, min_size=1, max_size=7), unit, unit)
def test_gae_is_the_discounted_sum_of_its_errors(turn_by_turn, gamma, lam):
    values, paid = map(list, zip(*turn_by_turn, strict=True))
    turns = len(values)
    later = [*values[1:], 0.0]
    deltas = [r + gamma * after - v for r, after, v in zip(paid, later, values, strict=True)]
    wanted = [
        math.fsum((gamma * lam) ** (j - k) * deltas[j] for j in range(k, turns))
        for k in range(turns)
    ]
    assert gae(values, paid, gamma=gamma, lam=lam) == pytest.approx(wanted, abs=1e-9)


def test_gae_at_its_ends():
    values = [0.3, -0.2, 0.9]
    monte_carlo = gae(values, [0.0, 0.0, 2.0], gamma=1.0, lam=1.0)
    assert monte_carlo == pytest.approx([2.0 - v for v in values])
    one_step = gae(values, [0.0, 0.0, 2.0], gamma=1.0, lam=0.0)
    assert one_step == pytest.approx([-0.2 - 0.3, 0.9 + 0.2, 2.0 - 0.9])
