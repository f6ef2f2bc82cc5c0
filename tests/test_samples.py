"""From finished groups to training samples: who is left out and why, and that lists stay aligned."""

import pytest
from fakes import scored, trajectory, turn
from hypothesis import given
from hypothesis import strategies as st

from rl.samples.samples import Dropped, by_segment, cut_off, group_samples, train_sample
from rollout.engine import VersionSpan
from rollout.trajectory import JUDGED
from trainer.batch_updates import trajectory_tokens
from trainer.turn_advantage import rewards_to_go

FAULTS = ("env_fault", "engine_fault", "host_fault", "judge_fault", "timeout", "crash")


def ids(samples) -> list[str]:
    return [s.id for s in samples]


def test_a_judged_group_gives_a_sample_per_member_and_advantages_of_mean_zero():
    members = [scored(f"t{i}", reward) for i, reward in enumerate([1.0, 0.0, 0.0, 1.0])]
    samples, dropped = group_samples(members, "grpo", filter_zero_variance=True)
    assert (ids(samples), dropped) == (["t0", "t1", "t2", "t3"], [])
    assert [max(s.advantages, key=abs) for s in samples] == [1.0, -1.0, -1.0, 1.0]


@pytest.mark.parametrize("stop", FAULTS)
def test_a_fault_is_dropped_as_failed_and_is_no_part_of_the_baseline(stop):
    judged = [scored("t0", 1.0), scored("t1", 0.5), scored("t2", 0.25)]
    alone, _ = group_samples(judged, "dr_grpo", filter_zero_variance=True)
    members = [scored("bad", 0.0, stop=stop), *judged]
    samples, dropped = group_samples(members, "dr_grpo", filter_zero_variance=True)
    assert samples == alone
    assert dropped == [Dropped(("bad",), "failed", stop)]


def test_every_stop_reason_is_either_judged_or_a_fault():
    assert JUDGED.isdisjoint(FAULTS)


def test_equal_rewards_are_filtered_as_zero_variance():
    members = [scored(f"t{i}", 0.3) for i in range(3)] + [scored("bad", 0.0, stop="crash")]
    samples, dropped = group_samples(members, "grpo", filter_zero_variance=True)
    assert samples == []
    assert dropped == [
        Dropped(("bad",), "failed", "crash"),
        Dropped(("t0", "t1", "t2"), "filtered", "zero_variance"),
    ]


def test_rewards_that_differ_by_the_order_of_a_sum_are_equal():
    rewards = [0.1 + 0.2 + 0.3, *[0.3 + 0.2 + 0.1] * 3]
    assert rewards[0] != rewards[1]
    members = [scored(f"t{i}", reward) for i, reward in enumerate(rewards)]
    samples, dropped = group_samples(members, "grpo", filter_zero_variance=True)
    assert (samples, [d.reason for d in dropped]) == ([], ["zero_variance"])


def test_without_the_filter_equal_rewards_are_samples_without_an_advantage():
    members = [scored(f"t{i}", 0.3) for i in range(3)]
    samples, dropped = group_samples(members, "grpo", filter_zero_variance=False)
    assert (len(samples), dropped) == (3, [])
    assert all(a == 0 for s in samples for a in s.advantages)


def test_one_judged_member_alone_has_no_baseline():
    members = [scored("t0"), scored("bad", stop="timeout")]
    samples, dropped = group_samples(members, "grpo", filter_zero_variance=False)
    assert samples == []
    assert dropped[1:] == [Dropped(("t0",), "filtered", "no_baseline")]


def test_a_group_of_faults_is_dropped_whole():
    members = [scored("a", stop="crash"), scored("b", stop="timeout")]
    samples, dropped = group_samples(members, "grpo", filter_zero_variance=True)
    assert samples == []
    assert [d.ids for d in dropped] == [("a",), ("b",)]


def test_a_trajectory_without_a_single_turn_gives_no_sample_and_is_accounted_for():
    """The opening alone filled the trajectory: there is nothing to train on."""
    members = [scored("t0"), scored("empty", 0.0, stop="no_room", turns=()), scored("t2", 0.0)]
    samples, dropped = group_samples(members, "grpo", filter_zero_variance=False)
    assert ids(samples) == ["t0", "t2"]
    assert dropped == [Dropped(("empty",), "failed", "no_room")]


LOOP = turn((1, 2), (3, *[7, 8] * 10), finish_reason="length")
HALF_WAY = turn((1, 2), tuple(range(10, 40)), finish_reason="length")


def cut(id: str, reward: float, last=HALF_WAY):
    return scored(id, reward, stop="max_tokens", turns=(last,))


def test_masked_members_are_part_of_the_baseline_and_give_no_sample():
    members = [scored("t0", 1.0), scored("t1", 0.0), cut("half", 0.0), cut("loop", 0.0, LOOP)]
    plain, _ = group_samples(members, "dr_grpo", filter_zero_variance=True)
    samples, dropped = group_samples(
        members, "dr_grpo", filter_zero_variance=True, mask_truncated=True
    )
    assert samples == [s for s in plain if s.id != "half"]
    assert ids(samples) == ["t0", "t1", "loop"]
    assert samples[0].advantages[-1] == 0.75, "the mean is over all four"
    assert dropped == [Dropped(("half",), "filtered", "truncated")]


def test_used_up_turns_are_no_length_limit():
    members = [scored("t0", 1.0), scored("t1", 0.0, stop="max_turns", turns=(HALF_WAY,))]
    samples, dropped = group_samples(
        members, "grpo", filter_zero_variance=True, mask_truncated=True
    )
    assert (ids(samples), dropped) == (["t0", "t1"], [])


def test_a_loop_over_several_turns_is_seen():
    """The limit ended it between turns, each of which was the same call again."""
    again = tuple(turn((1, 2), (7, 8, 9, 5)) for _ in range(4))
    assert not cut_off(trajectory("t", stop="max_tokens", turns=again))
    assert cut_off(trajectory("t", stop="max_tokens", turns=again[:3]))


@pytest.mark.parametrize("advantage", ["reinforce_pp", "gae"])
def test_an_advantage_that_is_not_of_a_group_needs_no_group(advantage):
    alone = [scored("t0", 0.5), scored("bad", 0.0, stop="crash")]
    samples, dropped = group_samples(alone, advantage, filter_zero_variance=True)
    assert [(s.id, s.reward) for s in samples] == [("t0", 0.5)]
    assert dropped == [Dropped(("bad",), "failed", "crash")]
    equal = [scored(f"t{i}", 1.0) for i in range(3)]
    samples, dropped = group_samples(equal, advantage, filter_zero_variance=True)
    assert ([s.reward for s in samples], dropped) == ([1.0] * 3, [])


def test_samples_carry_their_rewards():
    members = [scored("t0", 1.0), scored("t1", 0.25)]
    samples, _ = group_samples(members, "grpo", filter_zero_variance=True)
    assert [s.reward for s in samples] == [1.0, 0.25]


outcomes = st.tuples(st.sampled_from([*sorted(JUDGED), *FAULTS]), st.sampled_from([0.0, 0.5, 1.0]))


@given(
    st.lists(outcomes, min_size=1, max_size=8),
    st.booleans(),
    st.sampled_from(["grpo", "dr_grpo", "rloo"]),
)
def test_every_member_is_a_sample_or_dropped_exactly_once(outcomes, filtering, advantage):
    members = [scored(f"t{i}", reward, stop=stop) for i, (stop, reward) in enumerate(outcomes)]
    samples, dropped = group_samples(members, advantage, filter_zero_variance=filtering)
    accounted = [*ids(samples), *(id for d in dropped for id in d.ids)]
    assert sorted(accounted) == sorted(m.trajectory.id for m in members)
    assert abs(sum(s.advantages[-1] for s in samples)) < 1e-9


def test_a_sample_is_the_turns_end_to_end_with_every_list_aligned():
    first = turn((1, 2), (3, 4), v=5)
    second = turn((6,), (7, 8, 9), versions=(VersionSpan(5, 0, 1), VersionSpan(6, 1, 3)), v=0)
    sample = train_sample(trajectory("t7", turns=(first, second)), 0.25)
    assert (sample.id, sample.env) == ("t7", "fake")
    assert sample.token_ids == (1, 2, 3, 4, 6, 7, 8, 9)
    assert sample.loss_mask == (False, False, True, True, False, True, True, True)
    assert sample.rollout_logprobs == (0, 0, -0.5, -1.5, 0, -0.5, -1.5, -2.5)
    assert sample.advantages == (0, 0, 0.25, 0.25, 0, 0.25, 0.25, 0.25)
    assert sample.policy_versions == (5, 5, 5, 6, 6)
    assert sample.num_policy_tokens == 5


def test_segments_are_samples_of_their_own_with_the_advantage_and_the_weight_of_one_trajectory():
    turns = (
        turn((1, 2), (3, 4)),
        turn((5,), (6,)),
        turn((1, 2, 3, 4, 9), (8, 8, 7), segment=1),
    )
    long = scored("t0", 1.0, turns=turns)
    samples, dropped = group_samples([long, scored("t1", 0.0)], "grpo", filter_zero_variance=True)
    assert dropped == []
    first, second, other = samples
    assert (first.id, second.id, other.id) == ("t0", "t0~1", "t1")
    assert [s.trajectory for s in samples] == ["t0", "t0", ""]
    assert first.token_ids == (1, 2, 3, 4, 5, 6) and second.token_ids == (1, 2, 3, 4, 9, 8, 8, 7)
    assert second.loss_mask == (False,) * 5 + (True,) * 3, "what it repeats was learnt once"
    assert {a for s in (first, second) for a in s.advantages if a} == {1.0}
    tokens_S, trajectories = trajectory_tokens(samples)
    assert tokens_S.tolist() == [6, 6, other.num_policy_tokens] and trajectories == 2


def test_rewards_of_turns_go_to_the_segments_that_have_the_turns():
    turns = (turn((1,), (3,)), turn((5,), (6,)), turn((1, 2), (8,), segment=1))
    whole = train_sample(trajectory("t0", turns=turns), 0.0, 3.0, (1.0, 0.0, 0.5))
    parts = by_segment(whole, trajectory("t0", turns=turns))
    assert [p.turn_rewards for p in parts] == [(1.0, 2.0), (2.0,)], "what a turn leads to counts"


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
def test_rewards_to_go_are_the_same_in_one_piece_and_in_segments(counts, data):
    """A critic's, at the discount of credit per turn or at none, and those of turns over a batch."""
    numbers = [number for number, count in enumerate(counts) for _ in range(count)]
    first = [numbers.index(number) for number in range(len(counts))]
    turns = tuple(turn((1,), (3,), segment=n) for n in numbers)
    some = st.sampled_from([-1.0, 0.0, 0.5, 2.0])
    earned = tuple(data.draw(some) for _ in numbers)
    discount = data.draw(st.sampled_from([None, 0.0, 0.5, 1.0]))
    whole = train_sample(
        trajectory("t0", turns=turns), 0.0, 3.0, data.draw(st.sampled_from([earned, ()]))
    )
    parts = by_segment(whole, trajectory("t0", turns=turns), discount)
    wanted = rewards_to_go(whole.rewards_by_turn, 1.0 if discount is None else discount)
    for start, part in zip(first, parts, strict=True):
        found = rewards_to_go(part.rewards_by_turn, 1.0 if discount is None else discount)
        assert found == pytest.approx(wanted[start : start + len(found)])
