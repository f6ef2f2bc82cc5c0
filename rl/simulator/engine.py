"""A simulated engine: sequences that all write at one pace, which depends on how many there are."""

import heapq
from bisect import insort
from dataclasses import dataclass

from rl.simulator.config import CostSpec


@dataclass
class Work:
    """One turn at an engine: `left` tokens to write, on a context of `context` tokens of which `cached`
    are in this engine's cache. id: smaller for what began earlier."""

    id: int
    left: float
    context: float
    cached: float


class SimEngine:
    """Decodes in continuous time; `clock` counts the tokens that each running sequence has written.

    A sequence that needs a prefill makes the engine stand still for it. Sequences beyond the limit, or
    beyond what the cache holds, wait in line, in the order in which they began, wherever that was. Where
    the cache overflows, the last to begin goes back to the line and loses its prefix (as in vLLM).
    """

    def __init__(self, name: str, cost: CostSpec) -> None:
        self.name = name
        self.cost = cost
        self.version: int | None = None
        self.limit = 1
        self.available = True
        # How many times as long everything takes.
        self.slow = 1.0
        self.clock = 0.0
        self.now = 0.0
        self.ready_at = 0.0
        self.stamp = 0
        self.busy_seconds = 0.0
        self.sequence_seconds = 0.0
        self.cached = 0.0
        self._ends: list[tuple[float, int]] = []
        self._running: dict[int, tuple[Work, float]] = {}
        self._line: list[Work] = []

    @property
    def running(self) -> int:
        """Sequences that are being written."""
        return len(self._running)

    @property
    def cache_usage(self) -> float:
        """Share of the cache in use."""
        return (self.cached + self.running * self.clock) / self.cost.kv_tokens

    def advance(self, now: float) -> None:
        """Go on to `now`."""
        start = max(self.now, self.ready_at)
        if self.available and self._running:
            self.busy_seconds += now - self.now
            self.sequence_seconds += (now - self.now) * self.running
            if now > start:
                self.clock += (now - start) / self._pace()
        self.now = now

    def next_end(self) -> float | None:
        """When the next sequence ends, if nothing changes."""
        while self._ends and not self._stands(*self._ends[0]):
            heapq.heappop(self._ends)
        if not self._ends or not self.available:
            return None
        ahead = max(0.0, self._ends[0][0] - self.clock)
        return max(self.now, self.ready_at) + ahead * self._pace()

    def take_ended(self) -> int | None:
        """The sequence that has ended, if one has."""
        while self._ends and self._ends[0][0] <= self.clock + 1e-6:
            end, id = heapq.heappop(self._ends)
            if self._stands(end, id):
                self._drop(id)
                self._next_in_line()
                return id
        self._preempt()
        return None

    def add(self, work: Work) -> None:
        """Begin or queue a turn."""
        insort(self._line, work, key=lambda one: one.id)
        self._next_in_line()

    def remove(self, id: int) -> Work | None:
        """Take a turn away, with what is left of it. None where there is none."""
        if id in self._running:
            work, end = self._running[id]
            written = work.left - max(0.0, end - self.clock)
            self._drop(id)
            self._next_in_line()
            context = work.context + written
            return Work(id, max(0.0, end - self.clock), context, context)
        for work in self._line:
            if work.id == id:
                self._line.remove(work)
                return work
        return None

    def stall(self, seconds: float) -> None:
        """Stand still from now on for so long, after what it stands still for already."""
        self.ready_at = max(self.ready_at, self.now) + seconds * self.slow

    def recompute(self) -> None:
        """Compute all running contexts again: their caches are of other weights."""
        self.stall((self.cached + self.running * self.clock) / self.cost.prefill_tokens_per_second)
        for work in self._line:
            work.cached = 0

    def held(self) -> list[int]:
        """All turns here, running or waiting."""
        return [*self._running, *(work.id for work in self._line)]

    def _pace(self) -> float:
        cost = self.cost
        pace = cost.decode_fixed_ms + cost.decode_per_sequence_ms * self.running
        return pace * self.slow / 1e3

    def _stands(self, end: float, id: int) -> bool:
        """True if an entry of the heap is about a sequence as it runs now."""
        return id in self._running and self._running[id][1] == end

    def _drop(self, id: int) -> None:
        work, end = self._running.pop(id)
        self.cached -= work.context + work.left - end

    def _preempt(self) -> None:
        while self.running > 1 and self.cache_usage > 1:
            work = self.remove(max(self._running))
            assert work is not None, "it runs"
            work.cached = 0
            self.add(work)

    def _next_in_line(self) -> None:
        while self._line and self.running < self.limit:
            work = self._line[0]
            used = self.cached + self.running * self.clock
            if self._running and used + work.context > 0.95 * self.cost.kv_tokens:
                return
            self._line.pop(0)
            self.stall(max(0.0, work.context - work.cached) / self.cost.prefill_tokens_per_second)
            end = self.clock + work.left
            self._running[work.id] = (work, end)
            # cached + running * clock is what the cache holds at any time.
            self.cached += work.context + work.left - end
            heapq.heappush(self._ends, (end, work.id))
