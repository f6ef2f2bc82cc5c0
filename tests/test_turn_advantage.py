"""Advantages per turn: against sums written out, and their expected gradient against the exact one."""

import itertools
import math

import numpy as np
import pytest
from fakes import scored, trajectory, turn
from hypothesis import given
from hypothesis import strategies as st

from rl.samples.samples import Dropped, group_samples, train_sample
from rollout.trajectory import ScoredTrajectory
from trainer.advantage import GROUP_ADVANTAGES
from trainer.sample import TrainSample
from trainer.turn_advantage import over_batch, over_group, rewards_to_go, without_variance

reward = st.integers(-8, 8).map(lambda n: n / 4)
turns = st.lists(reward, min_size=1, max_size=4)
groups = st.lists(turns, min_size=2, max_size=6)
NAMES = sorted(GROUP_ADVANTAGES)


@given(turns, st.floats(0, 1))
def test_rewards_to_go_are_the_discounted_sums(rewards, discount):
    wanted = [
        math.fsum(discount ** (j - k) * rewards[j] for j in range(k, len(rewards)))
        for k in range(len(rewards))
    ]
    assert rewards_to_go(rewards, discount) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@given(groups)
def test_with_rewards_at_the_end_each_turn_has_its_trajectorys_advantage(name, group):
    ends = [turns[0] for turns in group]
    to_go = [[end] * len(turns) for end, turns in zip(ends, group, strict=True)]
    wanted = GROUP_ADVANTAGES[name](ends)
    found = over_group(to_go, GROUP_ADVANTAGES[name])
    assert found == [[a] * len(turns) for a, turns in zip(wanted, group, strict=True)]


def test_a_turn_is_compared_with_the_same_turn_of_the_others():
    """The second member ended after one turn, and stands with it beside the first one's second turn."""
    found = over_group([[3.0, 2.0], [1.0]], GROUP_ADVANTAGES["rloo"])
    assert found == [[2.0, 1.0], [-2.0]]
    assert not without_variance([[1.0, 0.5], [1.0]])
    assert without_variance([[1.0, 1.0], [1.0]])


# A game of one or two turns: first action -> its reward, and the rewards of the second turn's actions.
GAME = {0: (0.3, (0.0, 0.2)), 1: (0.0, (0.1, 1.0)), 2: (0.4, ())}
LOGITS = {"first": np.array([0.4, -0.2, 0.1]), 0: np.array([0.3, 0.0]), 1: np.array([-0.5, 0.5])}
PLAYS = [(a, b) for a, (_, second) in GAME.items() for b in (range(len(second)) or (None,))]


def _chances(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _slope(logits: np.ndarray, action: int) -> np.ndarray:
    """d log pi(action) / d logits."""
    return np.eye(len(logits))[action] - _chances(logits)


def _play(first: int, second: int | None) -> tuple[float, list[float], list[np.ndarray]]:
    """Chance, rewards and the slope of each turn's log-prob, over all logits end to end."""
    own, later = GAME[first]
    chance, rewards = float(_chances(LOGITS["first"])[first]), [own]
    parts = {key: np.zeros(len(logits)) for key, logits in LOGITS.items()}
    slopes = [np.concatenate(list({**parts, "first": _slope(LOGITS["first"], first)}.values()))]
    if second is not None:
        chance *= float(_chances(LOGITS[first])[second])
        rewards.append(later[second])
        slopes.append(
            np.concatenate(list({**parts, first: _slope(LOGITS[first], second)}.values()))
        )
    return chance, rewards, slopes


def _gradient(name: str, discount: float) -> np.ndarray:
    """Exact mean of a group's policy gradient over all groups of three."""
    mean = np.zeros(7)
    for group in itertools.product([_play(*play) for play in PLAYS], repeat=3):
        to_go = [rewards_to_go(rewards, discount) for _, rewards, _ in group]
        advantages = over_group(to_go, GROUP_ADVANTAGES[name])
        chance = math.prod(chance for chance, _, _ in group)
        for (_, _, slopes), values in zip(group, advantages, strict=True):
            mean += chance * sum(a * g for a, g in zip(values, slopes, strict=True)) / 3
    return mean


def _true_gradient() -> np.ndarray:
    """Of the expected sum of rewards, without any baseline."""
    plays = [_play(*play) for play in PLAYS]
    return sum((p * sum(rewards) * sum(slopes) for p, rewards, slopes in plays), np.zeros(7))


@pytest.mark.parametrize(("name", "scale"), [("rloo", 1.0), ("dr_grpo", 2 / 3)])
def test_the_expected_gradient_is_that_of_the_expected_reward(name, scale):
    """Over all 125 groups of three; dr_grpo's mean has the member itself in it, which scales by 2/3."""
    assert _gradient(name, 1.0) == pytest.approx(scale * _true_gradient(), abs=1e-12)


def test_a_discount_changes_the_gradient():
    assert _gradient("rloo", 0.5) != pytest.approx(_true_gradient(), abs=1e-3)


def _sample(id: str, mask: str, rewards: tuple[float, ...]) -> TrainSample:
    n = len(mask)
    zeros = (0.0,) * n
    written = tuple(c == "x" for c in mask)
    return TrainSample(id, "shop", (1,) * n, written, zeros, zeros, (0,) * n, sum(rewards), rewards)


def test_over_a_batch_rewards_to_go_are_normalised_over_its_tokens():
    batch = [_sample("a", ".xx.x", (1.0, 0.5)), _sample("b", ".x.xxx", (0.0, 0.25))]
    by_token = np.array([1.25, 1.25, 0.5, 0.125, 0.25, 0.25, 0.25])
    wanted = (by_token - by_token.mean()) / by_token.std()
    first, second = over_batch(batch, 0.5)
    found = [*first.advantages, *second.advantages]
    assert [a for a in found if a] == pytest.approx(wanted)
    assert first.advantages[0] == first.advantages[3] == 0.0


def _earned(id: str, *rewards: float, end: float = 0.0) -> ScoredTrajectory:
    played = trajectory(id, turns=[turn() for _ in rewards])
    return ScoredTrajectory(played, {}, sum(rewards) + end, rewards)


def test_a_groups_turns_have_advantages_of_their_own():
    members = [_earned("a", 1.0, 0.0, end=0.5), _earned("b", 0.0, 0.0)]
    samples, _ = group_samples(members, "dr_grpo", filter_zero_variance=True, turn_discount=1.0)
    assert [s.turn_rewards for s in samples] == [(1.0, 0.5), (0.0, 0.0)]
    assert samples[0].advantages == (0, 0, 0.75, 0.75, 0, 0, 0.25, 0.25)
    whole, _ = group_samples(members, "dr_grpo", filter_zero_variance=True)
    assert whole[0].advantages == (0, 0, 0.75, 0.75, 0, 0, 0.75, 0.75)


def test_turns_may_differ_where_the_sums_are_equal():
    members = [_earned("a", 1.0, 0.0), _earned("b", 0.0, 1.0)]
    assert group_samples(members, "grpo", filter_zero_variance=True)[0] == []
    samples, dropped = group_samples(members, "grpo", filter_zero_variance=True, turn_discount=1.0)
    assert [s.advantages for s in samples] == [
        (0, 0, 0, 0, 0, 0, -1, -1),
        (0, 0, 0, 0, 0, 0, 1, 1),
    ]
    assert dropped == []
    same = [scored("a", 0.5), scored("b", 0.5)]
    assert group_samples(same, "grpo", filter_zero_variance=True, turn_discount=1.0) == (
        [],
        [Dropped(("a", "b"), "filtered", "zero_variance")],
    )


def test_a_turn_without_a_token_gives_its_reward_to_the_one_before():
    played = trajectory("a", turns=[turn(), turn(written=()), turn(prompt=()), turn()])
    made = train_sample(played, 0.0, 3.0, (0.25, 0.25, 0.5, 0.0))
    assert (made.turn_lengths, made.turn_rewards) == ([2, 2, 2], (0.5, 0.5, 2.0))
    with pytest.raises(ValueError, match="1 rewards for its 2 turns"):
        _sample("a", ".x.x", (1.0,))
