"""Log-probs of tokens under the versions that wrote them, computed again or as the engine said.

Computing them again costs a forward pass over the batch per earlier version. Where engine and learner compute
the same, as in float32, it gives what the engine has said already.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from trainer.batch import PackedBatch, head
from trainer.parallel import Ranks

# What engine and learner may differ by, per token, for the engine's log-probs to stand for the learner's: on
# average, and at most. In float32 they differ by 3e-7 on average.
MEAN_GAP = 1e-6
LARGEST_GAP = 2e-5
# Tokens of a version that show whether they agree.
PROBE = 256

# The log-probs of a batch under earlier weights.
PastScores = Callable[[PackedBatch, dict[str, Tensor]], Tensor]


class BehaviourPass:
    """The passes under earlier versions in one update.

    setting: of `loss.behaviour`. With "auto" a version's first tokens, PROBE of them, are computed again.
    Where they differ from the engine's by no more than MEAN_GAP and LARGEST_GAP, the rest stay as the engine
    said, else all are computed. An update looks at its own tokens alone: it is the same after a resume, and
    weights that went wrong on their way to an engine are seen in the update that meets them.
    """

    def __init__(self, setting: str, score: PastScores, ranks: Ranks) -> None:
        self.setting, self.score, self.ranks = setting, score, ranks
        # Versions whose tokens the engine gives the learner's own log-probs, and those of which it does not.
        self.agreed: set[int] = set()
        self.differing: set[int] = set()

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
            if self.setting == "auto" and version not in self.differing:
                past_N = self._probed(batch, past_N, version, weights[version])
            else:
                past_N = self._with(batch, past_N, version, weights[version])
        return past_N

    def _with(
        self, batch: PackedBatch, past_N: Tensor, version: int, weights: dict[str, Tensor]
    ) -> Tensor:
        """past_N with the log-probs of a version's tokens in `batch`, which may be the first part of them."""
        found_N = past_N.clone()
        mine_N = batch.versions_N == version
        found_N[: len(mine_N)][mine_N] = self.score(batch, weights)[mine_N].to(past_N.dtype)
        return found_N

    def _probed(
        self, batch: PackedBatch, past_N: Tensor, version: int, weights: dict[str, Tensor]
    ) -> Tensor:
        """past_N with the first of a version's tokens, or with all where those are not as the engine said."""
        where = (batch.versions_N == version).nonzero()[:, 0]
        first = head(batch, int(where[:PROBE][-1]) + 1 if len(where) else 0)
        found_N = self._with(first, past_N, version, weights)
        scored = where[where < len(first.versions_N)]
        gap_N = (found_N - batch.rollout_logprobs_N)[scored].abs().double()
        found = self.ranks.total(
            {
                "gap": gap_N.sum().item(),
                "tokens": float(len(gap_N)),
                "far": float((gap_N > LARGEST_GAP).sum()),
                "left": float(len(first.input_ids_T) < len(batch.input_ids_T)),
            }
        )
        if not found["tokens"]:
            return found_N
        if found["gap"] <= MEAN_GAP * found["tokens"] and not found["far"]:
            self.agreed.add(version)
            return found_N
        self.differing.add(version)
        return self._with(batch, past_N, version, weights) if found["left"] else found_N
