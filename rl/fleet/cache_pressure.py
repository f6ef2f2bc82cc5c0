"""How full the engines' caches are, out of heartbeats: an engine tells the room in its cache, a controller
how many tokens its trajectories have at each engine.

It is an upper estimate: an engine may have dropped what a trajectory that is in a tool will ask for again,
and prefixes that trajectories share count for each of them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from rl.actors.heartbeat import Heartbeat


class CachePressure:
    """Estimates the share of each engine's cache that the trajectories in progress want."""

    def __init__(self) -> None:
        self._rooms: dict[str, int] = {}
        self._contexts: dict[str, Mapping[str, int]] = {}

    def hear(self, name: str, heartbeat: Heartbeat) -> None:
        """Take in what an actor has answered."""
        if heartbeat.cache_tokens:
            self._rooms[name] = heartbeat.cache_tokens
        self._contexts[name] = heartbeat.contexts

    def usage(self, engines: Iterable[str]) -> float:
        """Return the share of the fullest of these engines; above 1 where more is wanted than there is
        room."""
        wanted: Counter[str] = Counter()
        for contexts in self._contexts.values():
            wanted.update(contexts)
        shares = (wanted[one] / self._rooms[one] for one in engines if one in self._rooms)
        return max(shares, default=0.0)
