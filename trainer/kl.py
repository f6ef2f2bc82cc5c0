"""KL divergence of policies from tokens that one of them wrote: estimators, and the penalty of a distance to
a reference, in the loss or in the reward.

The estimators are of KL(sampler || other) from d = log other - log sampler at the sampler's tokens (Schulman,
"Approximating KL divergence", 2020). torch is imported for types alone. Shapes: see `trainer.loss_inputs`.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from trainer.sample import TrainSample

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.loss_inputs import LossInputs
    from trainer.objective_config import KlConfig

# A log ratio is cut off here: exp stays finite.
MAX_LOG_RATIO = 20.0


def k1(d_N: "Tensor") -> "Tensor":
    """-d: no bias, of either sign, and a large variance."""
    return -d_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def k2(d_N: "Tensor") -> "Tensor":
    """d^2 / 2: a small bias where the policies are near, never below 0."""
    d_N = d_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return d_N * d_N / 2


def k3(d_N: "Tensor") -> "Tensor":
    """exp(d) - 1 - d: no bias, never below 0."""
    d_N = d_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return d_N.expm1() - d_N


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def kl_to_reference(x: "LossInputs", c: "KlConfig") -> "Tensor":
    """(N,): the estimate of KL(present policy || reference) at each token, with gradient.

    The tokens are the behaviour version's. With `importance` each is weighed by the present policy's
    probability over that one's, so that value and gradient have no bias (DeepSeek-V3.2, arXiv 2512.02556,
    section 3.1).
    """
    assert x.reference_logprobs_N is not None, "scored under the reference"
    kl_N = ESTIMATORS[c.estimator](x.reference_logprobs_N - x.learner_logprobs_N)
    if not c.importance:
        return kl_N
    moved_N = x.learner_logprobs_N - x.behaviour_logprobs_N
    return moved_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * kl_N


def penalised(
    samples: Sequence[TrainSample], kl: Sequence[Sequence[float]], weight: float
) -> list[TrainSample]:
    """The batch with each token's advantage less weight (K_t - mean K), K_t the sum of a sample's KL from its
    token t on, and the mean over all policy tokens of the batch.

    kl: of each sample's policy tokens. E.g. one sample with KL (1, 2): K is (3, 2), so the advantages change
    by -weight (0.5, -0.5). The gradient is that of a reward less weight times the KL of all that a token
    leads to; the mean is a baseline.
    """
    to_go = [list(accumulate(reversed(one)))[::-1] for one in kl]
    count = sum(map(len, to_go))
    mean = sum(map(sum, to_go)) / count if count else 0.0
    found: list[TrainSample] = []
    for sample, left in zip(samples, map(iter, to_go), strict=True):
        rows = zip(sample.advantages, sample.loss_mask, strict=True)
        changed = tuple(a - weight * (next(left) - mean) if m else a for a, m in rows)
        found.append(replace(sample, advantages=changed))
    return found
