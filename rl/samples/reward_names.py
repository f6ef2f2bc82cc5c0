"""The names of the rewards that environments and judges give, against those that a run's settings weigh."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

from rl.samples.group import GroupReport

# A reward may be given now and then only: after so many judged trajectories without it, it is none.
ENOUGH = 64


class RewardNames:
    """Finds weights of rewards that nobody gives. Where an environment says which it gives, the check of the
    settings has found them before the run."""

    def __init__(self, weighted: Mapping[str, Collection[str]]) -> None:
        """weighted: per environment, the names that its settings weigh."""
        self.weighted = weighted
        self.judged: Counter[str] = Counter()
        self.given: dict[str, set[str]] = defaultdict(set)

    def book(self, report: GroupReport) -> str:
        """Take in a group; the sentence for a weight of what is never given, else empty."""
        env = report.spec.env
        for member in report.members:
            if member.judged:
                self.judged[env] += 1
                self.given[env] |= member.rewards.keys()
        never = sorted(set(self.weighted.get(env, ())) - self.given[env])
        if not never or self.judged[env] < ENOUGH:
            return ""
        return (
            f"environment {env!r}: rewards.{never[0]} weighs a reward that neither it nor a judge gave in "
            f"{self.judged[env]} trajectories; given were {', '.join(sorted(self.given[env]))}: name one of "
            "these, or drop the weight"
        )
