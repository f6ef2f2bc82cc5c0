"""Losses, advantages and corrections as a user writes them: three that work, and ten that do not."""

import torch


def reinforce(x, weights_N, *, scale=1.0):
    """A loss with one setting."""
    gain_N = weights_N * x.advantages_N * x.learner_logprobs_N
    return -scale * gain_N.sum() / x.num_tokens, {"loss/mine": weights_N.sum()}


def above_mean(rewards):
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def halves(x):
    return torch.full_like(x.rollout_logprobs_N, 0.5)


NUMBER = 3


def one_argument(x):
    return x.learner_logprobs_N.sum()


def raises(x, weights_N):
    return x.no_such_field


def returns_a_float(x, weights_N):
    return 1.0


def returns_a_vector(x, weights_N):
    return -x.learner_logprobs_N * x.advantages_N


def returns_nan(x, weights_N):
    return (x.learner_logprobs_N * float("nan")).sum()


def detached(x, weights_N):
    return -(x.learner_logprobs_N.detach() * x.advantages_N).sum()


def gradient_not_finite(x, weights_N):
    zero_N = x.learner_logprobs_N - x.learner_logprobs_N.detach()
    return zero_N.abs().sqrt().sum()


def too_few(rewards):
    return rewards[1:]


def divides_by_zero_variance(rewards):
    mean = sum(rewards) / len(rewards)
    return [(r - mean) / sum((r - mean) ** 2 for r in rewards) for r in rewards]


def weights_of_one_sample(x):
    return torch.ones(1)


def negative_weights(x):
    return -torch.ones_like(x.rollout_logprobs_N)
