"""Inputs of an objective for a micro-batch: one record, every tensor of shape (N,).

N policy tokens; those of a sample lie together, in order, and all of them are in the same micro-batch.
Counts are of all samples of an update, so that a loss is a plain sum and adds up over micro-batches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ValueInputs:
    """A critic's side. values: with gradient. behaviour_values: of the version that wrote the token.
    returns: what the value should have been. starts: True where a turn begins; only there the value
    means something. num_turns: of the whole batch."""

    values_N: Tensor
    behaviour_values_N: Tensor
    returns_N: Tensor
    starts_N: Tensor
    num_turns: int


@dataclass(frozen=True)
class LossInputs:
    """learner_logprobs: with gradient. behaviour_logprobs: the learner's, under the weights that wrote
    the token. proximal_logprobs: the learner's before the batch's updates. rollout_logprobs: the engine's.

    sample: index of the token's sample. sample_tokens: policy tokens of that sample's trajectory, of which
    there are num_samples in the whole batch: the samples of a trajectory weigh as one. num_tokens: policy
    tokens of the batch. max_completion_tokens: T_max, for
    losses with a constant denominator. reference_logprobs: the learner's under the reference's weights, where
    a KL is to one. entropy: of the present policy at each token, in nats, with gradient; None where nothing
    needs it. critic: where there is one.
    """

    learner_logprobs_N: Tensor
    behaviour_logprobs_N: Tensor
    proximal_logprobs_N: Tensor
    rollout_logprobs_N: Tensor
    advantages_N: Tensor
    sample_N: Tensor
    sample_tokens_N: Tensor
    num_samples: int
    num_tokens: int
    max_completion_tokens: int
    reference_logprobs_N: Tensor | None = None
    entropy_N: Tensor | None = None
    critic: ValueInputs | None = None

    def sample_mean(self, values_N: Tensor) -> Tensor:
        """(N,): for each token the mean of `values` over its sample's tokens."""
        return self.sample_sum(values_N) / torch.bincount(self.sample_N)[self.sample_N]

    def sample_sum(self, values_N: Tensor) -> Tensor:
        """(N,): for each token the sum of `values` over its sample's tokens."""
        count = int(self.sample_N.max()) + 1 if len(self.sample_N) else 0
        zeros_S = torch.zeros(count, dtype=values_N.dtype, device=values_N.device)
        return zeros_S.index_add(0, self.sample_N, values_N)[self.sample_N]
