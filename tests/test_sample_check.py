"""A batch that cannot be trained on gets one sentence that names the sample."""

import math
import random
from dataclasses import replace

import pytest
from fakes import sample

from trainer.sample import TrainSample
from trainer.sample_check import BadSample, check_samples


def batch() -> list[TrainSample]:
    rng = random.Random(0)
    return [sample(f"g1.{i}", 12, rng) for i in range(3)]


def sentence(samples: list[TrainSample], limit: int = 12) -> str:
    with pytest.raises(BadSample) as caught:
        check_samples(samples, limit)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_batch_passes():
    check_samples(batch(), 12)


def test_an_empty_batch_and_one_without_a_policy_token_are_refused():
    assert sentence([]) == "the batch holds no sample: there is nothing to train on"
    read_only = [replace(s, loss_mask=(False,) * 12) for s in batch()]
    assert "holds no token that the policy wrote" in sentence(read_only)


def test_a_sample_that_is_too_long_is_named_with_the_limit():
    assert sentence(batch(), 11) == (
        "sample g1.0 (fake): its 12 tokens are more than the 11 of learner.micro_batch_tokens"
    )


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_named(reward):
    first, second, third = batch()
    assert sentence([first, replace(second, reward=reward), third]) == (
        f"sample g1.1 (fake): its reward is {reward}; it has to be finite"
    )


@pytest.mark.parametrize("logprob", [math.nan, math.inf, -math.inf])
def test_an_engines_logprob_that_is_not_finite_is_named_with_its_token(logprob):
    first, second, third = batch()
    values = list(third.rollout_logprobs)
    values[2] = logprob  # the first token that the policy wrote
    broken = replace(third, rollout_logprobs=tuple(values))
    assert sentence([first, second, broken]) == (
        f"sample g1.2 (fake): the engine's log-prob of token 2 is {logprob}; it has to be finite"
    )


def test_what_the_policy_did_not_write_needs_no_logprob():
    first, *rest = batch()
    assert not first.loss_mask[0]
    unknown = replace(first, rollout_logprobs=(math.nan, *first.rollout_logprobs[1:]))
    check_samples([unknown, *rest], 12)


@pytest.mark.parametrize("advantage", [math.nan, math.inf, -math.inf])
def test_an_advantage_that_is_not_finite_is_named_with_its_token(advantage):
    first, *rest = batch()
    token = first.loss_mask.index(True)
    values = [advantage if t == token else a for t, a in enumerate(first.advantages)]
    assert sentence([replace(first, advantages=tuple(values)), *rest]) == (
        f"sample g1.0 (fake): the advantage of token {token} is {advantage}; it has to be finite"
    )


def test_a_teachers_log_prob_that_is_no_number_is_named():
    first, *others = batch()
    count = first.num_policy_tokens
    check_samples([replace(first, teacher_logprobs=(-math.inf,) * count), *others], 12)
    wrong = replace(first, teacher_logprobs=(math.nan,) * count)
    assert sentence([wrong, *others]).endswith("its teacher's log-prob of a token is nan")
