"""Heartbeats of a run's actors: who answers, from which process on which node, and when an engine was idle.

Every actor has a method `heartbeat`. `Heartbeats` asks all of them again and again, and remembers who
answered when: an actor that is busy or gone holds nobody up.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from ray.exceptions import RayError

from rl.actors.actor_method import RemoteMethod
from rl.nodes.nodes import own_address
from rl.nodes.process import first_line
from rl.record.status import ActorState

# An answer that takes longer is taken at the next look.
ANSWER_SECONDS = 1.0
# Idle spans shorter than the first are not noted. One that goes on is noted in pieces of the second.
LEAST_IDLE_SECONDS, LONGEST_IDLE_SECONDS = 0.1, 30.0


@dataclass(frozen=True)
class Heartbeat:
    """One answer of an actor.

    idle: spans (unix seconds) in which an engine had no request. cache_tokens: the room in an engine's cache.
    contexts: tokens of the trajectories that a controller has at each engine, those in a tool included.
    """

    pid: int
    node: str
    idle: tuple[tuple[float, float], ...] = ()
    cache_tokens: int = 0
    contexts: Mapping[str, int] = field(default_factory=dict[str, int])


def own_heartbeat(idle: tuple[tuple[float, float], ...] = ()) -> Heartbeat:
    """The heartbeat of the actor whose process this is."""
    return Heartbeat(os.getpid(), own_address(), idle)


class IdleTime:
    """Notes when an engine has no request."""

    def __init__(self) -> None:
        self._running = 0
        self._since = time.time()
        self._spans: deque[tuple[float, float]] = deque(maxlen=100)

    @contextmanager
    def request(self) -> Generator[None]:
        """Mark a request as in progress."""
        if not self._running:
            self._note(LEAST_IDLE_SECONDS)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self._since = time.time()

    def take(self) -> tuple[tuple[float, float], ...]:
        """Return the spans since the last call."""
        if not self._running:
            self._note(LONGEST_IDLE_SECONDS)
        taken = tuple(self._spans)
        self._spans.clear()
        return taken

    def _note(self, least: float) -> None:
        now = time.time()
        if now - self._since >= least:
            self._spans.append((self._since, now))
            self._since = now


class Heartbeats:
    """Asks a run's actors for heartbeats, and remembers who answered when."""

    def __init__(self, actors: Callable[[], Mapping[str, RemoteMethod[[], Heartbeat]]]) -> None:
        """`actors()`: the method `heartbeat` of each actor that there is now, by name."""
        self.actors = actors
        self._states: dict[str, ActorState] = {}
        self._asked: dict[str, asyncio.Future[Heartbeat]] = {}

    async def ask(self) -> dict[str, Heartbeat]:
        """Ask everybody who owes no answer, and wait a moment. Returns the answers that have come."""
        now = time.time()
        for name, heartbeat in self.actors().items():
            self._states.setdefault(name, ActorState(name, None, "", None, None))
            if name not in self._asked:
                self._asked[name] = asyncio.ensure_future(heartbeat.remote())
                self._set(name, asked=now)
        if not self._asked:
            return {}
        await asyncio.wait(self._asked.values(), timeout=ANSWER_SECONDS)
        answers: dict[str, Heartbeat] = {}
        for name, answer in list(self._asked.items()):
            if not answer.done():
                continue
            del self._asked[name]
            try:
                latest = answers[name] = answer.result()
            except RayError as error:
                self._set(name, asked=None, fault=first_line(error))
            else:
                self._states[name] = ActorState(name, latest.pid, latest.node, time.time(), None)
        return answers

    def states(self) -> tuple[ActorState, ...]:
        """Return who answered when."""
        return tuple(self._states.values())

    def close(self) -> None:
        """Await no answer any more."""
        for answer in self._asked.values():
            answer.cancel()

    def _set(self, name: str, *, asked: float | None, fault: str | None = None) -> None:
        last = self._states[name]
        said = last.fault if fault is None else fault
        self._states[name] = ActorState(name, last.pid, last.node, last.seen, asked, said)
