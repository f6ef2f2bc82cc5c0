"""Rewards for length against the papers' equations, and what a group's samples make of them."""

import pytest
from fakes import scored, turn
from pydantic import ValidationError

from rl.samples.length_shaping import LengthConfig, overlong, shaped, shortness
from rl.samples.samples import group_samples
from rollout.trajectory import ScoredTrajectory


def dapo_by_hand(length: int, longest: int, cache: int) -> float:
    """Equation 13, case by case."""
    if length <= longest - cache:
        return 0.0
    if length <= longest:
        return ((longest - cache) - length) / cache
    return -1.0


def test_the_overlong_punishment_is_that_of_the_equation():
    for longest, cache in ((20, 4), (20, 20), (16, 1)):
        for length in range(30):
            wanted = dapo_by_hand(length, longest, cache)
            assert overlong(length, limit=longest, buffer=cache) == pytest.approx(wanted)


def test_shortness_is_kimis_length_reward():
    lengths, solved = [10, 40, 25, 16], [True, True, False, False]
    found = shortness(lengths, solved)
    for n, good, value in zip(lengths, solved, found, strict=True):
        share = 0.5 - (n - 10) / (40 - 10)
        assert value == pytest.approx(share if good else min(0, share))
    assert shortness([7, 7, 7], [True, False, True]) == [0, 0, 0] and shortness([], []) == []


def written(id: str, tokens: int, reward: float) -> ScoredTrajectory:
    """A judged trajectory of one turn of so many tokens."""
    return scored(id, reward, turns=[turn(written=[5] * tokens)])


def test_both_are_named_rewards_and_part_of_the_sum_of_judged_members_alone():
    c = LengthConfig.model_validate(
        {"overlong": {"max_tokens": 10, "buffer": 4, "weight": 2}, "shortness": {"weight": 0.1}}
    )
    fault = scored("f", 0.0, stop="env_fault")
    members = [written("a", 4, 1.0), written("b", 8, 1.0), fault, written("c", 12, 0.0)]
    found = shaped(members, c)
    assert [m.rewards.get("overlong") for m in found] == [0, -1, None, -2]
    assert [m.rewards.get("shortness") for m in found] == [0.05, 0, None, pytest.approx(-0.05)]
    assert [m.reward for m in found] == pytest.approx([1.05, 0.0, 0.0, -2.05])
    assert found[2] is fault
    assert shaped(members, LengthConfig()) == members
    samples, _ = group_samples(found, "dr_grpo", filter_zero_variance=True)
    assert max(samples[0].advantages) == pytest.approx(1.05 - (1.05 - 2.05) / 3)


def test_a_buffer_longer_than_the_whole_is_refused():
    with pytest.raises(ValidationError, match="is the last part of max_tokens"):
        LengthConfig.model_validate({"overlong": {"max_tokens": 4, "buffer": 5}})
