"""Advantages from rewards: relative to the others of a task, to the whole batch, or to a critic.

Those of one group are computed where the group is. Those of a batch, and those of one trajectory's turns
under a critic (`trainer.critic`), are the learner's to compute. `trainer.turn_advantage` gives the turns of a
trajectory advantages of their own.

A new one is a function here and an entry in the dict of its kind at the end.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import compress
from math import fsum, sqrt
from statistics import fmean, pvariance
from typing import Protocol

from trainer.own_function import BadFunction, call_own, is_own
from trainer.sample import TrainSample

# Rewards that are no further apart are equal: four roundings of float32, in which some judges compute,
# relative to the largest reward.
ROUNDING = 4 * 2.0**-23
# And so are those that are apart by less than this, whatever their size: sums that should be 0. The epsilon
# in a standard deviation as well.
SMALLEST = 1e-9


def all_equal(rewards: Sequence[float]) -> bool:
    """True if the rewards differ by no more than rounding, so that none of them is the better one.

    E.g. 0.1 + 0.2 + 0.3 beside 0.3 + 0.2 + 0.1, of which the first is larger by 1e-16.
    """
    if not rewards:
        return True
    low, high = min(rewards), max(rewards)
    return high - low <= max(ROUNDING * max(abs(low), abs(high)), SMALLEST)


def deviation(variance: float) -> float:
    """The standard deviation with its epsilon, sqrt(variance + SMALLEST^2): never 0."""
    return sqrt(variance + SMALLEST**2)


def grpo(rewards: Sequence[float]) -> list[float]:
    """(r - mean) / std over the group (GRPO, arXiv 2402.03300, section 4.1.2); all 0 where all are equal.

    std is the population's: divided by the members, not by one less.
    """
    if all_equal(rewards):
        return [0.0] * len(rewards)
    mean, std = fmean(rewards), deviation(pvariance(rewards))
    return [(r - mean) / std for r in rewards]


def dr_grpo(rewards: Sequence[float]) -> list[float]:
    """r - mean: without the division, groups of all difficulties weigh alike (arXiv 2503.20783); all 0 where
    all are equal."""
    if all_equal(rewards):
        return [0.0] * len(rewards)
    mean = fmean(rewards)
    return [r - mean for r in rewards]


def rloo(rewards: Sequence[float]) -> list[float]:
    """r less the mean of the others: a baseline that does not depend on the member itself (RLOO, arXiv
    2402.14740); all 0 where all are equal. Needs two members or more."""
    if all_equal(rewards):
        return [0.0] * len(rewards)
    total, others = fsum(rewards), len(rewards) - 1
    return [r - (total - r) / others for r in rewards]


def reinforce_pp(rewards: Sequence[float], tokens: Sequence[int]) -> list[float]:
    """(r - mean) / std over all tokens of the batch, a sample's reward being that of each of its `tokens`
    (REINFORCE++, arXiv 2501.03262, without its KL penalty); all 0 where all are equal.

    std is the population's: divided by the tokens, not by one less.
    """
    if all_equal(rewards):
        return [0.0] * len(rewards)
    count = sum(tokens)
    mean = fsum(r * n for r, n in zip(rewards, tokens, strict=True)) / count
    variance = fsum(n * (r - mean) ** 2 for r, n in zip(rewards, tokens, strict=True)) / count
    std = deviation(variance)
    return [(r - mean) / std for r in rewards]


def with_group_baseline(samples: Sequence[TrainSample]) -> list[TrainSample]:
    """REINFORCE++ with a group's baseline: r less its group's mean, which samples come with, over the batch's
    std (arXiv 2501.03262, section 3): (A - mean) / std over all tokens of the batch; all 0 where all are
    equal."""
    tokens = [s.num_policy_tokens for s in samples]
    above = [next(compress(s.advantages, s.loss_mask), 0.0) for s in samples]
    return [
        replace(s, advantages=tuple(a if m else 0.0 for m in s.loss_mask))
        for s, a in zip(samples, reinforce_pp(above, tokens), strict=True)
    ]


def gae(
    values: Sequence[float], rewards: Sequence[float], *, gamma: float, lam: float
) -> list[float]:
    """Generalized advantage estimation (arXiv 1506.02438, equation 16) over K turns as the actions.

    values: V before each turn, (K,). rewards: what each turn earned, (K,), what came with the end in the
    last one; after it the value is 0: delta_k = r_k + gamma V_(k+1) - V_k and A_k = delta_k + gamma lam
    A_(k+1). E.g. values (0, 0.5), rewards (0, 1), gamma 1, lam 1 -> [1.0, 0.5].
    """
    advantages: list[float] = []
    later = after = 0.0
    for value, reward in zip(reversed(values), reversed(rewards), strict=True):
        later = reward + gamma * after - value + gamma * lam * later
        after = value
        advantages.append(later)
    return advantages[::-1]


def batch_normalised(samples: Sequence[TrainSample]) -> list[TrainSample]:
    """The batch with the advantages that `reinforce_pp` gives its rewards."""
    tokens = [s.num_policy_tokens for s in samples]
    advantages = reinforce_pp([s.reward for s in samples], tokens)
    return [
        replace(s, advantages=tuple(a if m else 0.0 for m in s.loss_mask))
        for s, a in zip(samples, advantages, strict=True)
    ]


# By the rewards of one group's members; what is of a batch as well is finished there.
GROUP_ADVANTAGES: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_pp_baseline": dr_grpo,
}
# By a whole batch of samples, which come back with their advantages.
BATCH_ADVANTAGES: dict[str, Callable[[Sequence[TrainSample]], list[TrainSample]]] = {
    "reinforce_pp": batch_normalised,
    "reinforce_pp_baseline": with_group_baseline,
}


class OverTurns(Protocol):
    """An advantage from a critic's value before each turn and the reward of each turn."""

    def __call__(
        self, values: Sequence[float], rewards: Sequence[float], *, gamma: float, lam: float
    ) -> list[float]: ...


CRITIC_ADVANTAGES: dict[str, OverTurns] = {"gae": gae}


# Of teachers, token by token (`trainer.distillation`).
DISTILL = "distill"


def advantage_names() -> list[str]:
    """All of them."""
    return [*(GROUP_ADVANTAGES | BATCH_ADVANTAGES | CRITIC_ADVANTAGES), DISTILL]


def group_advantage(name: str) -> Callable[[Sequence[float]], list[float]] | None:
    """The advantage called so where it is of a group, the user's own at `module:function` among them."""
    return partial(_own, name) if is_own(name) else GROUP_ADVANTAGES.get(name)


def _own(name: str, rewards: Sequence[float]) -> list[float]:
    """Advantages by the user's own function. Raises BadFunction."""
    found = [float(value) for value in call_own(name, list(rewards))]
    if len(found) != len(rewards):
        raise BadFunction(f"{name!r} returned {len(found)} advantages for {len(rewards)} rewards")
    return found
