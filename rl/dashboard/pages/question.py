"""A question to a run's index that an open page asks again and again, as rarely as what is new allows."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from rl.dashboard.trajectory_filter import TrajectoryFilter
from rl.dashboard.trajectory_index import mark, mark_of

T = TypeVar("T")
# A question that took long is asked again only after so many times as long: a page must not slow the run.
REST = 20
SETTLED_NS = 10**9


class Question(Generic[T]):
    """An answer of the index that is kept while the index and the question stay the same."""

    def __init__(self, most_rest: float) -> None:
        """most_rest: seconds after which what is new is asked for at the latest."""
        self._most_rest = most_rest
        self._kept: tuple[TrajectoryFilter, T] | None = None
        self._mark: object = None
        self._rest_until = 0.0

    async def answer(
        self,
        folder: Path,
        asked: TrajectoryFilter,
        ask: Callable[[], T],
        texts: Path | None = None,
    ) -> T:
        """texts: the text index, where the answer depends on it."""
        now, seen = time.monotonic(), mark(folder) + (mark_of(texts) if texts else ())
        kept = self._kept
        if kept and asked == kept[0] and (seen == self._mark or now < self._rest_until):
            return kept[1]
        answer = await asyncio.to_thread(ask)
        took = time.monotonic() - now
        # A second commit within a tick of the file system's clock leaves the mark as it is.
        settled = time.time_ns() - max((one[0] for one in seen if one), default=0) > SETTLED_NS
        self._kept, self._mark = (asked, answer), seen if settled else None
        self._rest_until = time.monotonic() + min(self._most_rest, REST * took)
        return answer
