"""Groups that may be trained on again: the surplus of over-sampling, at a predefined share of a step.

LongCat-Flash-Thinking (arXiv 2509.18883, section 3.2.2): what was finished beyond what a batch took is kept
and sampled again later, as long as it is not too old, mixed with new groups. Here such a group is first
trained on as any other, and comes here afterwards: the ledger books it once, the metric
`replay/reused_groups` counts each time more. Draws are uniform, and with replacement over steps.
"""

import random
from collections.abc import Sequence

from rl.sample_queue import BufferedGroup
from rollout.window import staleness


class Replay:
    """Surplus groups that were trained on and are still young enough. With `share` 0 it stays empty."""

    def __init__(self, share: int, max_staleness: int, seed: int) -> None:
        """`share`: groups of a step that may be drawn here."""
        self.share = share
        self.max_staleness = max_staleness
        self.groups: list[BufferedGroup] = []
        self._surplus: set[str] = set()
        self._random = random.Random(seed)

    @property
    def available(self) -> int:
        """Groups that the next step can draw."""
        return min(self.share, len(self.groups))

    def left_over(self, groups: Sequence[BufferedGroup]) -> None:
        """These were finished when a batch was taken, and it did not take them."""
        if self.share:
            self._surplus.update(group.id for group in groups)

    def draw(self, count: int, learner_version: int) -> list[BufferedGroup]:
        """`count` different groups; they stay."""
        drawn = self._random.sample(self.groups, count)
        for group in drawn:
            gap = staleness(learner_version, group.versions)
            assert gap <= self.max_staleness, (
                f"reused group {group.id} is {gap} versions old, {self.max_staleness} are allowed"
            )
        return drawn

    def mix(
        self, fresh: Sequence[BufferedGroup], reused: Sequence[BufferedGroup]
    ) -> list[BufferedGroup]:
        """A step's groups, shuffled where some are reused, so that staleness is spread evenly."""
        mixed = [*fresh, *reused]
        if reused:
            self._random.shuffle(mixed)
        return mixed

    def trained(self, groups: Sequence[BufferedGroup], learner_version: int) -> None:
        """These were trained on for the first time, which made `learner_version`."""
        kept = [*self.groups, *(g for g in groups if g.id in self._surplus)]
        self._surplus.difference_update(g.id for g in groups)
        self.groups = [
            g for g in kept if staleness(learner_version, g.versions) <= self.max_staleness
        ]

    def forget(self, group: BufferedGroup) -> None:
        """It was dropped before it was trained on."""
        self._surplus.discard(group.id)
