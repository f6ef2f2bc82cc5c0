"""The pulse of a run's actors: who answers, from which process on which node, and what an engine did not do.

Every actor has a method `heartbeat`. `Heartbeats` asks all of them again and again, and remembers who
answered when: an actor that is busy or gone holds nobody up.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from rl.nodes.process import first_line
from rl.record.status import ActorState

# An answer that takes longer is taken at the next look.
ANSWER_SECONDS = 1.0
# An engine without a request for so long has a bubble worth seeing. One that goes on is told in pieces.
LEAST_IDLE_SECONDS, LONGEST_IDLE_SECONDS = 0.1, 30.0


@dataclass(frozen=True)
class Heartbeat:
    """What an actor says. idle: of an engine, stretches (unix seconds) in which it had no request."""

    pid: int
    node: str
    idle: tuple[tuple[float, float], ...] = ()


def own_heartbeat(idle: tuple[tuple[float, float], ...] = ()) -> Heartbeat:
    """Of the actor whose process this is."""
    return Heartbeat(os.getpid(), ray.util.get_node_ip_address(), idle)


class IdleTime:
    """Notes when an engine has no request."""

    def __init__(self) -> None:
        self._running = 0
        self._since = time.time()
        self._stretches: deque[tuple[float, float]] = deque(maxlen=100)

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request is in progress."""
        if not self._running:
            self._note(LEAST_IDLE_SECONDS)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self._since = time.time()

    def take(self) -> tuple[tuple[float, float], ...]:
        """The stretches since the last call."""
        if not self._running:
            self._note(LONGEST_IDLE_SECONDS)
        taken = tuple(self._stretches)
        self._stretches.clear()
        return taken

    def _note(self, least: float) -> None:
        now = time.time()
        if now - self._since >= least:
            self._stretches.append((self._since, now))
            self._since = now


class Heartbeats:
    """Of the actors of a run, by name."""

    def __init__(self, handles: Callable[[], Mapping[str, Any]]) -> None:
        """`handles()`: who there is now."""
        self.handles = handles
        self._states: dict[str, ActorState] = {}
        self._asked: dict[str, asyncio.Future[Heartbeat]] = {}

    async def ask(self) -> dict[str, Heartbeat]:
        """Ask everybody who owes no answer, and wait a moment. Returns the answers that have come."""
        now = time.time()
        for name, handle in self.handles().items():
            self._states.setdefault(name, ActorState(name, None, "", None, None))
            if name not in self._asked:
                self._asked[name] = asyncio.ensure_future(handle.heartbeat.remote())
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
                heartbeat = answers[name] = answer.result()
            except RayError as error:
                self._set(name, asked=None, fault=first_line(error))
            else:
                self._states[name] = ActorState(
                    name, heartbeat.pid, heartbeat.node, time.time(), None
                )
        return answers

    def states(self) -> tuple[ActorState, ...]:
        """Who answered when."""
        return tuple(self._states.values())

    def close(self) -> None:
        """Await no answer any more."""
        for answer in self._asked.values():
            answer.cancel()

    def _set(self, name: str, *, asked: float | None, fault: str | None = None) -> None:
        last = self._states[name]
        said = last.fault if fault is None else fault
        self._states[name] = ActorState(name, last.pid, last.node, last.seen, asked, said)
