"""Finished groups between rollouts and learner: bounds staleness, gives whole batches.

Holds control data and Ray references only; the tokens stay where Ray keeps them.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rollout.window import staleness


@dataclass(frozen=True)
class BufferedGroup:
    """A group with samples to train on. ids: its samples. versions: of each, the oldest that wrote a token.
    samples: reference to its `list[TrainSample]`."""

    id: str
    env: str
    ids: tuple[str, ...]
    versions: tuple[int, ...]
    samples: Any


class SampleQueue:
    """Oldest version first; what has become too old is handed back as stale."""

    def __init__(self, max_staleness: int) -> None:
        self.max_staleness = max_staleness
        self.groups: list[BufferedGroup] = []
        self._changed = asyncio.Event()

    def put(self, group: BufferedGroup) -> None:
        """Add a finished group."""
        self.groups.append(group)
        self.groups.sort(key=lambda g: min(g.versions))
        self._changed.set()

    def recheck(self) -> None:
        """Something that `take`'s condition depends on has changed."""
        self._changed.set()

    def drop_stale(self, learner_version: int) -> list[BufferedGroup]:
        """Take out what could not be trained on any more."""
        fresh = [g for g in self.groups if self._fresh(g, learner_version)]
        stale = [g for g in self.groups if not self._fresh(g, learner_version)]
        self.groups = fresh
        return stale

    async def take(
        self,
        count: int,
        learner_version: int,
        ready: Callable[[Sequence[BufferedGroup]], bool] = lambda rest: True,
    ) -> list[BufferedGroup]:
        """The oldest `count` groups, as soon as there are so many and `ready` accepts what is left over.

        The caller drops stale groups before and keeps learner_version fixed while it waits.
        """
        while len(self.groups) < count or not ready(self.groups[count:]):
            self._changed.clear()
            await self._changed.wait()
        batch, self.groups = self.groups[:count], self.groups[count:]
        for group in batch:
            gap = staleness(learner_version, group.versions)
            assert gap <= self.max_staleness, (
                f"group {group.id} is {gap} versions old, {self.max_staleness} are allowed"
            )
        return batch

    def _fresh(self, group: BufferedGroup, learner_version: int) -> bool:
        return staleness(learner_version, group.versions) <= self.max_staleness
