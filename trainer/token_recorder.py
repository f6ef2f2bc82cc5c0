"""Records what an update computed of each policy token, for a look at single trajectories afterwards."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.batch import PackedBatch
from trainer.moe.router import RouterRecord
from trainer.parallel import Ranks
from trainer.sample import TokenScores, TrainSample

# Layers with a router times experts per token, of which the choices are kept.
MOST_CHOICES = 64


class TokenRecorder:
    """Collects them over the micro-batches of a step."""

    def __init__(self, samples: Sequence[TrainSample]) -> None:
        self.samples = samples
        self.logprobs: list[list[float]] = [[] for _ in samples]
        self.entropies: list[list[float]] = [[] for _ in samples]
        self.experts: list[list[list[list[int]]]] = [[] for _ in samples]

    def note(
        self, batch: PackedBatch, logprobs_N: Tensor, entropy_N: Tensor, routers: RouterRecord
    ) -> None:
        """Note the scores of the micro-batch that was just scored. logprobs_N: NaN where it is not known."""
        samples = batch.sample_N.tolist()
        rows = zip(samples, logprobs_N.tolist(), entropy_N.detach().tolist(), strict=True)
        for index, logprob, entropy in rows:
            self.logprobs[index].append(logprob)
            self.entropies[index].append(entropy)
        chosen = [routers.used_TK[layer] for layer in sorted(routers.used_TK)]
        if chosen and len(chosen) * chosen[0].shape[-1] <= MOST_CHOICES:
            chosen_NLK = torch.stack([used_TK[batch.source_N] for used_TK in chosen], 1)
            for index, experts in zip(samples, chosen_NLK.tolist(), strict=True):
                self.experts[index].append(experts)

    def scores(self, ranks: Ranks) -> list[TokenScores]:
        """Scores of all samples; every rank has all of them."""
        logprobs, entropies = ranks.merged(self.logprobs), ranks.merged(self.entropies)
        experts = ranks.merged(self.experts)
        return [
            TokenScores(
                sample.id,
                [
                    a
                    for a, policy in zip(sample.advantages, sample.loss_mask, strict=True)
                    if policy
                ],
                [None if math.isnan(one) else one for one in logprobs[index]],
                entropies[index],
                experts[index],
            )
            for index, sample in enumerate(self.samples)
        ]
