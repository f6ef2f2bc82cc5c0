"""Losses, advantages and corrections as a user writes them: some that work, and some that do not."""

import functools
import math

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


def mean_of_what_is_there(x, weights_N):
    """A mean over a micro-batch is no part of the batch's."""
    return -(x.advantages_N * x.learner_logprobs_N).mean()


def changes_its_inputs(x, weights_N):
    x.advantages_N.clamp_(min=0)
    return -(x.advantages_N * x.learner_logprobs_N).sum() / x.num_tokens


def counts_what_is_ours(x, weights_N):
    loss = -(x.advantages_N * x.learner_logprobs_N).sum() / x.num_tokens
    return loss, {"entropy": weights_N.sum()}


def clips_some(x, weights_N):
    """As written for any batch: a count by a short name, 0 where nothing is left, nothing for no token."""
    kept_N = x.advantages_N > 0
    if not kept_N.any():
        return torch.tensor(0.0)
    gain_N = x.advantages_N.where(kept_N, 0.0) * x.learner_logprobs_N
    low = x.learner_logprobs_N.detach().min()
    return -gain_N.sum() / x.num_tokens, {"clipped_away": (~kept_N).sum(), "kl": low}


def pulls_to_the_reference(x, weights_N):
    gap_N = x.learner_logprobs_N - x.reference_logprobs_N
    return (gap_N * gap_N).sum() / x.num_tokens - 0.01 * x.entropy_N.sum() / x.num_tokens


class Scaled:
    """An object that is called."""

    def __call__(self, x, weights_N):
        return reinforce(x, weights_N)


scaled = Scaled()
partly = functools.partial(reinforce, scale=2.0)


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


def weights_over_their_mean(x):
    weights_N = (x.behaviour_logprobs_N - x.rollout_logprobs_N).exp()
    return weights_N / weights_N.mean()


def fails_below_zero(rewards):
    return [math.sqrt(reward) for reward in rewards]


def negative_weights(x):
    return -torch.ones_like(x.rollout_logprobs_N)
