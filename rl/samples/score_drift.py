"""Drift of a reward model's scores in a run: how far they are from those of its training.

In: groups that were judged. Out: metrics over the last `window` groups of an environment. No alarm: a policy
that improves moves its scores, too. No files.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import fmean

from rl.samples.group import GroupReport
from trainer.reward_scores import TrainingScores, kolmogorov_smirnov, wasserstein


@dataclass
class ScoreDrift:
    """The scores that one judge, called `reward`, gives in one environment, against `training`."""

    env: str
    reward: str
    training: TrainingScores
    window: int
    groups: deque[list[float]] = field(init=False)

    def __post_init__(self) -> None:
        self.groups = deque(maxlen=self.window)

    def add(self, report: GroupReport) -> None:
        """Take in a group."""
        given = [m.rewards for m in report.members if m.judged and self.reward in m.rewards]
        if report.spec.env == self.env and given:
            self.groups.append([one[self.reward] for one in given])

    def metrics(self) -> dict[str, float]:
        """`drift/ENV/REWARD/…`: distances, and the shift of the mean, both in training's standard
        deviations but for `ks`."""
        found = [score for group in self.groups for score in group]
        if not found:
            return {}
        known, spread = self.training.scores, self.training.spread
        values = {
            "ks": kolmogorov_smirnov(found, known),
            "wasserstein": wasserstein(found, known) / spread,
            "shift": (fmean(found) - fmean(known)) / spread,
        }
        return {f"drift/{self.env}/{self.reward}/{name}": v for name, v in values.items()}
