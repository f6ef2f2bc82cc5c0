"""Group advantages: a trajectory's reward relative to the others of its task.

Closed set: a name in `trainer.config.AdvantageName`, a function here, a line in ADVANTAGES.
"""

from collections.abc import Callable, Sequence
from statistics import fmean, pstdev

from trainer.config import AdvantageName


def grpo(rewards: Sequence[float]) -> list[float]:
    """(r - mean) / std over the group (GRPO, arXiv 2402.03300, section 4.1.2); all 0 where std is 0."""
    mean, std = fmean(rewards), pstdev(rewards)
    return [(r - mean) / std if std > 0 else 0.0 for r in rewards]


def dr_grpo(rewards: Sequence[float]) -> list[float]:
    """r - mean: without the division, groups of all difficulties weigh alike (arXiv 2503.20783)."""
    mean = fmean(rewards)
    return [r - mean for r in rewards]


ADVANTAGES: dict[AdvantageName, Callable[[Sequence[float]], list[float]]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
}
