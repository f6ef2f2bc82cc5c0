"""Forward passes of a policy over samples, packed into micro-batches and shared out over the ranks.

In: samples, and for a pass under an earlier version or a reference its weights by name. Out: scores of each
policy token. Every rank has to call a pass with the same samples. Shapes: see `trainer.batch`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from trainer.batch import PackedBatch, pack
from trainer.config import LearnerConfig
from trainer.micro_batches import plan_micro_batches, plan_shared
from trainer.parallel import Ranks, exchanged
from trainer.sample import TrainSample
from trainer.scorer import Scorer, Scores


class Passes:
    """Scores samples by one policy, under its present weights or others."""

    def __init__(self, scorer: Scorer, config: LearnerConfig, ranks: Ranks) -> None:
        self.scorer, self.ranks = scorer, ranks
        self.device = torch.device(config.device)
        self.max_tokens = config.micro_batch_tokens
        # Samples that begin alike need not have been routed alike.
        self.sharing = not config.router.replay

    def micro_batches(self, samples: Sequence[TrainSample]) -> Iterator[PackedBatch]:
        """This rank's, packed; samples of one version stay together, so that each batch is scored again
        under as few past versions as can be."""
        versions = [s.policy_versions for s in samples]
        latest = max((v for of_sample in versions for v in of_sample), default=0)
        by_version: dict[int, list[int]] = defaultdict(list)
        for index, of_sample in enumerate(versions):
            by_version[min(of_sample, default=latest)].append(index)
        for indices in by_version.values():
            plans = self._plans([samples[i].token_ids for i in indices])
            for together in zip(*plans, strict=True):
                every = [[indices[j] for j in chosen] for chosen in together]
                mine = every.pop(self.ranks.rank)
                beside = [i for other in every for i in other]
                yield pack(samples, mine, self.device, beside, sharing=self.sharing)

    def _plans(self, samples: Sequence[Sequence[int]]) -> list[list[list[int]]]:
        """The micro-batches of each rank."""
        if self.sharing:
            return plan_shared(samples, self.max_tokens, self.ranks.count)
        lengths = [len(tokens) for tokens in samples]
        return plan_micro_batches(lengths, self.max_tokens, self.ranks.count)

    def score(self, batch: PackedBatch, weights: Mapping[str, Tensor] | None = None) -> Scores:
        """Scores of a micro-batch, under the present weights or under these."""
        if weights is None:
            return self.scorer(batch)
        if self.ranks.count == 1:
            return functional_call(self.scorer, dict(weights), (batch,))
        with exchanged(self.scorer, weights):
            return self.scorer(batch)

    def logprobs(self, batch: PackedBatch, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """(N,): the log-prob of each policy token."""
        return self.score(batch, weights).logprobs_N

    def values(self, batch: PackedBatch, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """(N,): the critic's value at each policy token, of a policy with a critic."""
        values_N = self.score(batch, weights).values_N
        assert values_N is not None, "a scorer with a critic"
        return values_N

    @torch.no_grad()
    def by_sample(
        self, samples: Sequence[TrainSample], numbers: Callable[[PackedBatch], Tensor]
    ) -> list[list[Any]]:
        """`numbers(micro-batch)`, (N,) or (N, C), as a list of numbers or of rows per sample; every rank has
        all of them."""
        found: list[list[Any]] = [[] for _ in samples]
        for batch in self.micro_batches(samples):
            for index, number in zip(batch.sample_N.tolist(), numbers(batch).tolist(), strict=True):
                found[index].append(number)
        return self.ranks.merged(found)
