"""Groups that are trained on again, at a predefined share of a step.

LongCat-Flash-Thinking (arXiv 2509.18883, section 3.2.2) keeps what was finished beyond what a batch took,
samples it again later as long as it is not too old, and mixes it with what is new. Such a surplus waits in
our queue and is trained on before anything newer. So what is drawn here is any group that was trained on and
that staleness still allows: uniformly, and with replacement over steps. The ledger books a group once, the
metric `replay/reused_groups` counts each time more.
"""

import random
from collections.abc import Collection, Sequence

from rl.samples.sample_queue import BufferedGroup, assert_fresh
from rollout.window import staleness


class ReuseBuffer:
    """Groups that were trained on and are young enough for the next step. With `share` 0 it stays empty."""

    def __init__(self, share: int, max_staleness: int, seed: int) -> None:
        """`share`: groups of a step that may be drawn here."""
        self.share = share
        self.max_staleness = max_staleness
        self.groups: list[BufferedGroup] = []
        self._random = random.Random(seed)

    @property
    def available(self) -> int:
        """Groups that the next step can draw."""
        return min(self.share, len(self.groups))

    def trained(self, groups: Sequence[BufferedGroup], learner_version: int) -> None:
        """Note groups that were trained on for the first time, in the step that made `learner_version`."""
        if self.share:
            self.groups = [
                group
                for group in (*self.groups, *groups)
                if staleness(learner_version, group.versions) <= self.max_staleness
            ]

    def draw(self, count: int, learner_version: int) -> list[BufferedGroup]:
        """`count` different groups; they stay."""
        drawn = self._random.sample(self.groups, count)
        assert_fresh(drawn, learner_version, self.max_staleness, "reused group")
        return drawn

    def forget(self, groups: Collection[str]) -> None:
        """The samples of these (by id) are gone."""
        self.groups = [group for group in self.groups if group.id not in groups]

    def mix(
        self, fresh: Sequence[BufferedGroup], reused: Sequence[BufferedGroup]
    ) -> list[BufferedGroup]:
        """A step's groups, shuffled where some are reused, so that staleness is spread evenly."""
        mixed = [*fresh, *reused]
        if reused:
            self._random.shuffle(mixed)
        return mixed
