"""A circuit breaker: an environment that fails most of its episodes gets no new ones until it works again.

    closed --(faults among the last episodes)--> open --(cool-down)--> half-open --(probe works)--> closed
                                                  ^                        |
                                                  +-----(probe fails)------+   the cool-down doubles

No clock here: time, in seconds, is an argument. What was begun before the breaker tripped ends as it ends,
and no longer counts.
"""

from collections import deque
from dataclasses import dataclass
from typing import Literal

from rl.env_table import BreakerConfig

State = Literal["closed", "open", "half_open"]
# As metrics give it.
LEVEL: dict[State, float] = {"closed": 0.0, "half_open": 0.5, "open": 1.0}


@dataclass(frozen=True)
class Change:
    """A breaker has changed its state. faults of `episodes`: what it was judged by. seconds: the cool-down
    of one that has opened."""

    state: State
    faults: int
    episodes: int
    seconds: float = 0.0


class Breaker:
    """One environment's."""

    def __init__(self, config: BreakerConfig) -> None:
        self.config = config
        self.state: State = "closed"
        self.since = 0.0
        self.cooldown = 0.0
        self.probe: str | None = None
        self.groups: set[str] = set()  # begun since it was closed
        self.ended: deque[tuple[float, int, int]] = deque()  # when, faults, episodes
        self.trips = 0

    @property
    def ready_at(self) -> float:
        """When an open one may be probed."""
        return self.since + self.cooldown

    def admits(self, now: float) -> bool:
        """True if a group may begin."""
        if self.state == "open":
            return now >= self.ready_at
        return self.state == "closed" or self.probe is None

    def begin(self, group: str, now: float) -> Change | None:
        """A group begins; after the cool-down it is the probe."""
        if self.state == "closed":
            self.groups.add(group)
            return None
        assert self.admits(now), f"group {group} begins while the breaker is {self.state}"
        self.probe = group
        if self.state == "half_open":
            return None
        self.state, self.since = "half_open", now
        return Change("half_open", 0, 0)

    def forget(self, group: str) -> None:
        """A group was given up or lost by no fault of the environment; a probe may begin anew."""
        self.groups.discard(group)
        if group == self.probe:
            self.probe = None

    def end(self, group: str, faults: int, episodes: int, now: float) -> Change | None:
        """A group has ended, with so many faults among its episodes."""
        if group == self.probe:
            self.probe = None
            works = faults < self.config.share * episodes
            return (
                self._close(faults, episodes, now) if works else self._open(faults, episodes, now)
            )
        if group not in self.groups:  # begun before it tripped
            return None
        self.groups.discard(group)
        self.ended.append((now, faults, episodes))
        faults, episodes = self._recent(now)
        if faults >= self.config.faults and faults >= self.config.share * episodes:
            return self._open(faults, episodes, now)
        return None

    def _recent(self, now: float) -> tuple[int, int]:
        """Faults and episodes of the last groups: no more of them than have `episodes`, none that is old."""
        total = sum(episodes for _, _, episodes in self.ended)
        oldest = now - self.config.window_seconds
        while self.ended[0][0] < oldest or total - self.ended[0][2] >= self.config.episodes:
            total -= self.ended.popleft()[2]
        return sum(faults for _, faults, _ in self.ended), total

    def _open(self, faults: int, episodes: int, now: float) -> Change:
        # One that trips again soon after it was closed was not well yet.
        again = self.state == "half_open" or (
            self.trips > 0 and now - self.since < self.config.window_seconds
        )
        longer = 2 * self.cooldown if again else self.config.cooldown_seconds
        self.cooldown = min(longer, self.config.max_cooldown_seconds)
        self.state, self.since = "open", now
        self.trips += 1
        self.groups.clear()
        self.ended.clear()
        return Change("open", faults, episodes, self.cooldown)

    def _close(self, faults: int, episodes: int, now: float) -> Change:
        self.state, self.since = "closed", now
        return Change("closed", faults, episodes)
