"""Log-probs of tokens under the versions that wrote them, computed again or as the engine said.

Computing them again costs a forward pass over the batch per earlier version. Where engine and learner compute
the same, as in float32, it gives what the engine has said already.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from trainer.batch import PackedBatch
from trainer.parallel import Ranks

# What engine and learner may differ by, per token, for the engine's log-probs to stand for the learner's: on
# average, and at most. In float32 they differ by 3e-7 on average.
MEAN_GAP = 1e-6
LARGEST_GAP = 2e-5

# The log-probs of a batch under earlier weights.
PastScores = Callable[[PackedBatch, dict[str, Tensor]], Tensor]


class BehaviourPass:
    """The passes under earlier versions in one update.

    setting: of `loss.behaviour`. With "auto" a version's tokens are computed again until a micro-batch has
    shown that they differ from the engine's by no more than MEAN_GAP and LARGEST_GAP; the rest of them stay
    as the engine said. An update looks at its own tokens alone: it is the same after a resume, and weights
    that went wrong on their way to an engine are seen in the update that meets them.
    """

    def __init__(self, setting: str, score: PastScores, ranks: Ranks) -> None:
        self.setting, self.score, self.ranks = setting, score, ranks
        # Versions whose tokens the engine gives the learner's own log-probs.
        self.agreed: set[int] = set()

    @torch.no_grad()
    def logprobs(
        self, batch: PackedBatch, present: int, weights: Mapping[int, dict[str, Tensor]]
    ) -> Tensor:
        """(N,): the log-prob of each token under the version that wrote it; NaN for those of version
        `present`, which the training pass gives, and where the engine's stands for it.

        weights: of earlier versions. Every rank has to call it with its part of the same micro-batch. Raises
        ValueError where a version's weights are missing.
        """
        past_N = torch.full_like(batch.rollout_logprobs_N, math.nan)
        if self.setting == "engine":
            return past_N
        versions = sorted(batch.versions - {present} - self.agreed)
        for version in versions:
            if version not in weights:
                raise ValueError(
                    f"a sample of version {version} came when the weights of {sorted(weights)} and "
                    f"{present} are kept"
                )
            values_N = self.score(batch, weights[version])
            past_N = torch.where(batch.versions_N == version, values_N, past_N)
        if self.setting == "auto" and versions:
            self._compare(batch, past_N, versions)
        return past_N

    def _compare(self, batch: PackedBatch, past_N: Tensor, versions: Sequence[int]) -> None:
        """Note which of these versions' tokens, of all ranks, are as the engine said."""
        gap_N = (past_N - batch.rollout_logprobs_N).abs().double()
        sums: dict[str, float] = {}
        for version in versions:
            one_N = gap_N[batch.versions_N == version]
            sums[f"{version} gap"] = one_N.sum().item()
            sums[f"{version} tokens"] = float(len(one_N))
            sums[f"{version} far"] = float((one_N > LARGEST_GAP).sum())
        found = self.ranks.total(sums)
        for version in versions:
            tokens, gap = found[f"{version} tokens"], found[f"{version} gap"]
            if tokens and gap <= MEAN_GAP * tokens and not found[f"{version} far"]:
                self.agreed.add(version)
