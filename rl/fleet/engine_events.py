"""Records what engines did as spans of the run's events: which version they served, when they loaded, slept,
idled.

Few of them: two for each version that an engine loads, one for each sleep, one for each stretch without a
request that is worth seeing. A version's span is written when the engine leaves it.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Protocol

# A lane says no more than this much of one engine between two looks: the longest stretches without a request.
MOST_IDLE = 20


class Record(Protocol):
    """Writes down a span of time in a lane (unix seconds), with details."""

    def __call__(
        self, lane: str, name: str, start: float, end: float, **details: object
    ) -> None: ...


def unrecorded(lane: str, name: str, start: float, end: float, **details: object) -> None:
    """A `Record` for those who want none."""


class EngineSpans:
    """Spans of all engines of a run."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self._since: dict[str, tuple[int, float]] = {}
        self._asleep: dict[str, float] = {}
        self._window: tuple[int, ...] = ()

    def serve(self, versions: Mapping[str, int]) -> None:
        """Note which version each engine serves from now on."""
        now = time.time()
        for name, version in versions.items():
            self._leave(name, now)
            self._since[name] = (version, now)

    def loaded(self, versions: Mapping[str, tuple[int, float]], start: float) -> None:
        """Note engines that were closed since `start` and are open again. versions: of each, its version, and
        for how many milliseconds its requests stood still.
        """
        now = time.time()
        for name, (version, paused) in versions.items():
            self._leave(name, start)
            said = f"requests stood still for {paused:.0f} ms"
            self.record(name, f"load version {version}", start, now, what=said)
            self._since[name] = (version, now)

    def sleep(self, names: Iterable[str]) -> None:
        """Note engines that begin to sleep."""
        self._asleep |= dict.fromkeys(names, time.time())

    def wake(self) -> None:
        """All engines are awake."""
        now = time.time()
        for name, since in self._asleep.items():
            self.record(name, "asleep", since, now)
        self._asleep = {}

    def lost(self, names: Iterable[str]) -> None:
        """Note engines that have died."""
        now = time.time()
        for name in names:
            self._leave(name, now)
            self._asleep.pop(name, None)

    def idle(self, name: str, stretches: Iterable[tuple[float, float]]) -> None:
        """This engine had no request from start to end."""
        longest = sorted(stretches, key=lambda s: s[0] - s[1])[:MOST_IDLE]
        for start, end in sorted(longest):
            self.record(name, "idle", start, end)

    def window(self, versions: tuple[int, ...]) -> None:
        """Note which versions live."""
        if versions != self._window:
            now = time.time()
            self._window = versions
            self.record("window", f"versions {' '.join(map(str, versions))}", now, now)

    def close(self) -> None:
        """The run ends: what engines serve now is written down."""
        self.wake()
        now = time.time()
        for name in list(self._since):
            self._leave(name, now)

    def _leave(self, name: str, end: float) -> None:
        if name in self._since:
            version, since = self._since.pop(name)
            self.record(name, f"version {version}", since, end)
