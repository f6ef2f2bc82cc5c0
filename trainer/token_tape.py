"""What an update computed of each policy token, for who looks at single trajectories afterwards."""

import math
from collections.abc import Sequence

from torch import Tensor

from trainer.batch import PackedBatch
from trainer.parallel import Ranks
from trainer.sample import TokenScores, TrainSample


class TokenTape:
    """Collects them over the micro-batches of a step."""

    def __init__(self, samples: Sequence[TrainSample]) -> None:
        self.samples = samples
        self.logprobs: list[list[float]] = [[] for _ in samples]
        self.entropies: list[list[float]] = [[] for _ in samples]

    def note(self, batch: PackedBatch, logprobs_N: Tensor, entropy_N: Tensor) -> None:
        """Of a micro-batch. logprobs_N: NaN where it is not known."""
        rows = zip(
            batch.sample_N.tolist(), logprobs_N.tolist(), entropy_N.detach().tolist(), strict=True
        )
        for index, logprob, entropy in rows:
            self.logprobs[index].append(logprob)
            self.entropies[index].append(entropy)

    def scores(self, ranks: Ranks) -> list[TokenScores]:
        """Of all samples; every rank has all of them."""
        logprobs, entropies = ranks.merged(self.logprobs), ranks.merged(self.entropies)
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
            )
            for index, sample in enumerate(self.samples)
        ]
