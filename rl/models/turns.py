"""Turns of calls to one service: who may send next, by priority, a limit, and the service's circuit breaker.

A call waits in the queue until it is its turn. While the breaker is open nobody has one; after its cool-down
one call is the probe. Nor has anybody one for as long as the service has asked for (`Retry-After`). No limit
of the queue's length: who asks is held, and with it the episodes in progress, which are limited.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable

from rl.env_table import BreakerConfig
from rl.tasks.breaker import Breaker, State


class Turns:
    """Hands out the turns of one service."""

    def __init__(self, limit: int, breaker: BreakerConfig, clock: Callable[[], float]) -> None:
        """limit: turns at once. clock: in seconds."""
        self.limit = limit
        self.breaker = Breaker(breaker)
        self.clock = clock
        self.running: set[str] = set()
        self._numbers = itertools.count()
        self._queue: list[tuple[int, int, asyncio.Future[str]]] = []
        self._timer: asyncio.TimerHandle | None = None
        # Before which the service has asked not to be asked again.
        self._rests_until = clock()

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return sum(not future.done() for _, _, future in self._queue)

    @property
    def state(self) -> State:
        """The breaker's."""
        return self.breaker.state

    async def wait(self, priority: int, seconds: float) -> str:
        """Wait for a turn, and return its name. Raises TimeoutError after so many seconds without one."""
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (priority, next(self._numbers), future))
        self._hand_out()
        try:
            async with asyncio.timeout(seconds):
                return await future
        except (asyncio.CancelledError, TimeoutError):
            if future.done() and not future.cancelled():  # it came in the same moment
                self.give_up(future.result())
            raise

    def end(self, turn: str, *, fault: bool) -> None:
        """End a turn: the service has answered, or has not."""
        self.running.discard(turn)
        self.breaker.end(turn, int(fault), 1, self.clock())
        self._hand_out()

    def give_up(self, turn: str) -> None:
        """End a turn that says nothing about the service."""
        self.running.discard(turn)
        self.breaker.forget(turn)
        self._hand_out()

    def rest(self, seconds: float) -> None:
        """Hand out nothing for so long: the service has asked for it."""
        self._rests_until = max(self._rests_until, self.clock() + seconds)

    def close(self) -> None:
        """Hand out nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _hand_out(self) -> None:
        now = self.clock()
        rests = max(0.0, self._rests_until - now)
        while (
            not rests
            and self._queue
            and len(self.running) < self.limit
            and self.breaker.admits(now)
        ):
            _, number, future = heapq.heappop(self._queue)
            if future.done():
                continue
            turn = str(number)
            self.breaker.begin(turn, now)
            self.running.add(turn)
            future.set_result(turn)
        is_open = self.breaker.state == "open"
        if self._queue and self._timer is None and (is_open or rests):
            left = max(rests, self.breaker.ready_at - now if is_open else 0.0)
            self._timer = asyncio.get_running_loop().call_later(left, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._hand_out()
