"""Records what an update computed of each policy token, for a look at single trajectories afterwards."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trainer.batch import PackedBatch
from trainer.moe.router import RouterRecord
from trainer.parallel import Ranks
from trainer.sample import TokenScores, TrainSample

if TYPE_CHECKING:
    import numpy.typing as npt

# Layers with a router times experts per token, of which the choices are kept.
MOST_CHOICES = 64


class TokenRecorder:
    """Collects them over the micro-batches of a step, as tensors until its end."""

    def __init__(self, samples: Sequence[TrainSample]) -> None:
        self.samples = samples
        self.samples_N: list[Tensor] = []
        self.logprobs_N: list[Tensor] = []
        self.entropies_N: list[Tensor] = []
        self.experts_NLK: list[Tensor] = []

    def note(
        self, batch: PackedBatch, logprobs_N: Tensor, entropy_N: Tensor, routers: RouterRecord
    ) -> None:
        """Note the scores of the micro-batch that was just scored. logprobs_N: NaN where it is not known."""
        self.samples_N.append(batch.sample_N)
        self.logprobs_N.append(logprobs_N)
        self.entropies_N.append(entropy_N.detach())
        chosen = [routers.used_TK[layer] for layer in sorted(routers.used_TK)]
        if chosen and len(chosen) * chosen[0].shape[-1] <= MOST_CHOICES:
            rows = [used_TK[batch.source_N] for used_TK in chosen]
            self.experts_NLK.append(torch.stack(rows, 1).to(torch.int16))

    def scores(self, ranks: Ranks) -> list[TokenScores]:
        """Scores of all trajectories, a trajectory's segments end to end; every rank has all of them."""
        logprobs = ranks.merged(self._by_sample(self.logprobs_N))
        entropies = ranks.merged(self._by_sample(self.entropies_N))
        experts = ranks.merged(self._by_sample(self.experts_NLK))
        segments = defaultdict[str | int, list[int]](list)
        for index, sample in enumerate(self.samples):
            segments[sample.trajectory or index].append(index)
        found: list[TokenScores] = []
        for indices in segments.values():
            samples = [self.samples[i] for i in indices]
            one = TokenScores(
                samples[0].trajectory or samples[0].id,
                [a for s in samples for a in compress(s.advantages, s.loss_mask)],
                [None if math.isnan(v) else v for i in indices for v in logprobs[i].tolist()],
                [v for i in indices for v in entropies[i].tolist()],
                np.concatenate([experts[i] for i in indices]),
            )
            found.append(one)
        return found

    def _by_sample(self, rows: Sequence[Tensor]) -> list["npt.NDArray[Any]"]:
        """Rows of all micro-batches, one per policy token, as an array for each sample; each has its
        tokens in order, for no sample is cut up."""
        if not rows:
            return [np.empty(0, dtype=np.int16) for _ in self.samples]
        sample_N = torch.cat(self.samples_N)
        counts = torch.bincount(sample_N, minlength=len(self.samples)).tolist()
        sorted_N = torch.cat(list(rows))[sample_N.argsort(stable=True)]
        return [part.numpy() for part in sorted_N.cpu().split(counts)]
