"""Finished groups between rollouts and learner: bounds staleness, gives whole batches.

Holds control data and Ray references only; the tokens stay where Ray keeps them.
"""

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

from rollout.window import staleness

_OLDEST = attrgetter("oldest")


@dataclass(frozen=True)
class BufferedGroup:
    """A group with samples to train on. ids: its samples. versions: of each, the oldest that wrote a token.
    samples: reference to its `list[TrainSample]`."""

    id: str
    env: str
    ids: tuple[str, ...]
    versions: tuple[int, ...]
    samples: object

    @cached_property
    def oldest(self) -> int:
        """The oldest version that wrote a token of any of its samples."""
        return min(self.versions)


def count_by_version(groups: Sequence[BufferedGroup]) -> dict[int, int]:
    """How many of `groups`, which are sorted as the queue keeps them, there are per oldest version."""
    counts: dict[int, int] = {}
    start = 0
    while start < len(groups):
        version = groups[start].oldest
        end = bisect_right(groups, version, lo=start, key=_OLDEST)
        counts[version] = end - start
        start = end
    return counts


def assert_fresh(
    groups: Sequence[BufferedGroup], learner_version: int, max_staleness: int, what: str = "group"
) -> None:
    """No sample older than the bound is trained on; `what` the message calls one of the groups."""
    for group in groups:
        gap = staleness(learner_version, group.versions)
        assert gap <= max_staleness, (
            f"{what} {group.id} is {gap} versions old, {max_staleness} are allowed"
        )


class SampleQueue:
    """Oldest version first; what has become too old is handed back as stale."""

    def __init__(self, max_staleness: int) -> None:
        self.max_staleness = max_staleness
        self.groups: list[BufferedGroup] = []
        self._changed = asyncio.Event()
        self._ended = False

    def put(self, group: BufferedGroup) -> None:
        """Add a finished group."""
        insort(self.groups, group, key=_OLDEST)
        self._changed.set()

    def end(self) -> None:
        """Nobody waits for a batch any more: `take` gives none."""
        self._ended = True
        self._changed.set()

    def recheck(self) -> None:
        """Something that `take`'s condition depends on has changed."""
        self._changed.set()

    def drop_stale(self, learner_version: int) -> list[BufferedGroup]:
        """Take out what could not be trained on any more."""
        count = bisect_left(self.groups, learner_version - self.max_staleness, key=_OLDEST)
        stale, self.groups = self.groups[:count], self.groups[count:]
        return stale

    async def take(
        self,
        count: int,
        learner_version: int,
        ready: Callable[[Sequence[BufferedGroup]], bool] = lambda rest: True,
        *,
        fewest: int | None = None,
    ) -> list[BufferedGroup]:
        """The oldest `count` groups, as soon as there are so many and `ready` accepts what is left over;
        with `fewest`, the least number from it up to `count` of which that holds.

        None of them once the queue was ended. The caller drops stale groups before and keeps learner_version
        fixed while it waits.
        """
        sizes = range(count if fewest is None else fewest, count + 1)
        while not self._ended:
            if (size := self._first_ready(sizes, ready)) is not None:
                batch, self.groups = self.groups[:size], self.groups[size:]
                assert_fresh(batch, learner_version, self.max_staleness)
                return batch
            self._changed.clear()
            await self._changed.wait()
        return []

    def _first_ready(
        self, sizes: range, ready: Callable[[Sequence[BufferedGroup]], bool]
    ) -> int | None:
        there = len(self.groups)
        return next((n for n in sizes if n <= there and ready(self.groups[n:])), None)
