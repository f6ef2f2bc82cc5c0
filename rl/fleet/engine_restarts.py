"""Starts engines in place of those that died, up to `engine.max_restarts` of them in a run.

A new engine has a name of its own. It starts on whichever node has room; where none has, Ray keeps the
request until a node joins, so that an autoscaler sees it, and the run goes on meanwhile. It gets its first
turn once it has loaded the newest version (`Fleet.join`).
"""

import asyncio
from collections.abc import Collection
from itertools import count
from typing import Protocol

from rl.actors.handles import StartError
from rl.fleet.node_watch import Says

# Before another try where an engine could not start; twice as long each time.
AGAIN_SECONDS = 10.0


class Starts(Protocol):
    """Asks the cluster to start engines."""

    async def add_engine(self, name: str) -> str:
        """Start an engine, without a deadline. Returns its node's address. Raises StartError."""
        ...


class Joins(Protocol):
    """The engines in service."""

    async def join(self, name: str) -> bool:
        """Take a new engine into service. Returns False where it has died already."""
        ...


class EngineRestarts:
    """Replaces dead engines during one run."""

    def __init__(
        self,
        cluster: Starts,
        fleet: Joins,
        journal: Says,
        *,
        engines: int,
        most: int,
        slow_seconds: float,
        shared: Collection[str] = (),
    ) -> None:
        """engines: how many the run began with. most: engines to start. slow_seconds: after these the journal
        names an engine that has not started. shared: engines on the learner's devices, which are not
        replaced."""
        self.cluster = cluster
        self.fleet = fleet
        self.journal = journal
        self.shared = frozenset(shared)
        self.most = self.left = most
        self.slow_seconds = slow_seconds
        self._numbers = count(engines)
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: asyncio.Queue[BaseException] = asyncio.Queue()

    def replace(self, lost: str) -> None:
        """Have an engine started in place of `lost`, unless it was on the learner's own devices."""
        if self.most and lost not in self.shared:
            self._tasks.add(task := asyncio.create_task(self._replace(lost)))
            task.add_done_callback(self._ended)

    async def failed(self) -> None:
        """Raise the error of taking a new engine into service, once there is one."""
        raise await self._errors.get()

    async def close(self) -> None:
        """Start no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.put_nowait(error)

    async def _replace(self, lost: str) -> None:
        pause = AGAIN_SECONDS
        while self.left:
            self.left -= 1
            name = f"engine-{next(self._numbers)}"
            self.journal.say(name, f"{name} starts in place of {lost}")
            try:
                address = await self._started(name)
            except StartError as error:
                self.journal.say(name, str(error))
                await asyncio.sleep(pause)
                pause *= 2
                continue
            if await self.fleet.join(name):
                self.journal.say(name, f"{name} has taken the place of {lost}, on node {address}")
            # Of one that has died meanwhile whoever noticed that asks for another one.
            return
        self.journal.say(lost, f"{lost} is not replaced: engine.max_restarts is {self.most}")

    async def _started(self, name: str) -> str:
        starting = asyncio.ensure_future(self.cluster.add_engine(name))
        try:
            await asyncio.wait({starting}, timeout=self.slow_seconds)
            if not starting.done():
                self.journal.say(
                    name,
                    f"{name} has not started within {self.slow_seconds:g} s: it waits until a node has room "
                    "for it (engine.cpus, engine.gpus), or its log says why",
                )
            return await starting
        finally:
            starting.cancel()
