"""Meter of a batch's learning, per environment: entropy, KL, ratios, sample size, advantages.

Consumes each micro-batch's inputs of the objective, as the update computes them anyway. Produces metrics
`learn/<env>/...` and `learn/all/...`. Sums and maxima stay on the device until the batch's end, all
environments of a micro-batch together. Means are over policy tokens, each as often as an update had it.

KL is estimated by k3 (Schulman, "Approximating KL divergence", 2020): the mean of r - 1 - log r, with r the
present policy's probability of a token over the sampler's, on the sampler's tokens. That is KL(sampler ||
present policy), never below 0. The sampler is the behaviour policy (the version that wrote the token, as the
objective takes it) in `kl_behaviour`, and the engine in `kl_engine`.

Shapes: E environments of the batch, S samples, N policy tokens of a micro-batch, C columns summed, R ratios.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.kl import MAX_LOG_RATIO
from trainer.loss_inputs import LossInputs
from trainer.parallel import Ranks
from trainer.sample import TrainSample

# Columns of the sums.
_TOKENS, _ENTROPY, _KL_BEHAVIOUR, _KL_ENGINE, _WEIGHT, _SQUARE, _ADVANTAGE, _ADVANTAGE_2 = range(8)
_CLIPPED, _COLUMNS = 8, 9


class LearningMeter:
    """Meters the updates on one batch; every rank has one and notes its own micro-batches."""

    def __init__(self, samples: Sequence[TrainSample], device: torch.device) -> None:
        self.envs = sorted({s.env for s in samples})
        numbers = {env: number for number, env in enumerate(self.envs)}
        self._env_S = torch.tensor([numbers[s.env] for s in samples], device=device)
        count = len(self.envs)
        self._sums_EC = torch.zeros(count, _COLUMNS, dtype=torch.float64, device=device)
        self._most_ER = torch.full((count, 2), -torch.inf, dtype=torch.float64, device=device)

    @torch.no_grad()
    def note(self, x: LossInputs, entropy_N: Tensor, chosen_S: Tensor | None = None) -> None:
        """Take in a micro-batch after its backward pass, in which its log-probs have kept their gradient.

        entropy_N: of the present policy at each token, in nats. chosen_S: of each sample of the update its
        index in the batch; None where they are the batch's. A token whose advantage is not 0 though its
        gradient is counts as clipped, whichever loss, correction or mask ended it.
        """
        env_N = self._env_S[x.sample_N if chosen_S is None else chosen_S[x.sample_N]]
        present_N = x.learner_logprobs_N.detach().double()
        to_behaviour_N, to_engine_N = (
            (present_N - base_N.double()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
            for base_N in (x.behaviour_logprobs_N, x.rollout_logprobs_N)
        )
        weight_N, advantage_N = to_engine_N.exp(), x.advantages_N.double()
        gradient_N = x.learner_logprobs_N.grad
        clipped_N = torch.zeros_like(present_N)
        if gradient_N is not None:
            clipped_N = ((gradient_N == 0) & (advantage_N != 0)).double()
        columns_NC = torch.stack(
            [
                torch.ones_like(present_N),
                entropy_N.detach().double(),
                to_behaviour_N.expm1() - to_behaviour_N,
                to_engine_N.expm1() - to_engine_N,
                weight_N,
                weight_N * weight_N,
                advantage_N,
                advantage_N * advantage_N,
                clipped_N,
            ],
            dim=1,
        )
        self._sums_EC.index_add_(0, env_N, columns_NC)
        ratios_NR = torch.stack([to_behaviour_N, to_engine_N], dim=1)
        rows_NR = env_N[:, None].expand(-1, 2)
        self._most_ER.scatter_reduce_(0, rows_NR, ratios_NR, "amax")

    def metrics(self, ranks: Ranks) -> dict[str, float]:
        """The update's metrics over all ranks, which call this together; an environment without a policy
        token has none."""
        ranks.add_up([self._sums_EC])
        ranks.greatest([self._most_ER])
        sums_EC = torch.cat([self._sums_EC, self._sums_EC.sum(0, keepdim=True)]).tolist()
        most_ER = torch.cat([self._most_ER, self._most_ER.amax(0, keepdim=True)]).exp().tolist()
        found: dict[str, float] = {}
        for env, sums, most in zip([*self.envs, "all"], sums_EC, most_ER, strict=True):
            for name, value in _values(sums, most).items():
                found[f"learn/{env}/{name}"] = value
        return found


def _values(sums: Sequence[float], most: Sequence[float]) -> dict[str, float]:
    tokens = sums[_TOKENS]
    if not tokens:
        return {}
    mean = sums[_ADVANTAGE] / tokens
    return {
        "policy_tokens": tokens,
        "entropy": sums[_ENTROPY] / tokens,
        "kl_behaviour": sums[_KL_BEHAVIOUR] / tokens,
        "kl_engine": sums[_KL_ENGINE] / tokens,
        "ratio_max": most[0],
        "engine_ratio_max": most[1],
        "ess": sums[_WEIGHT] ** 2 / (tokens * sums[_SQUARE]),
        "clipped": sums[_CLIPPED] / tokens,
        "advantage": mean,
        "advantage_std": max(sums[_ADVANTAGE_2] / tokens - mean * mean, 0.0) ** 0.5,
    }
