"""Starts engines in place of those that died, up to `engine.max_restarts` of them in a run.

A new engine has a name of its own. It starts on whichever node has room; where none has, Ray keeps the
request until a node joins, so that an autoscaler sees it, and the run goes on meanwhile. It gets its first
turn once it has loaded the newest version (`Fleet.join`).
"""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Protocol

from rl.actors.handles import StartError

# Before another try where an engine could not start; twice as long each time.
AGAIN_SECONDS = 10.0


class Starts(Protocol):
    """What is asked of the cluster."""

    async def add_engine(self, name: str) -> str:
        """Start an engine, without a deadline. Returns its node's address. Raises StartError."""
        ...


class EngineRestarts:
    """Of one run."""

    def __init__(
        self,
        cluster: Starts,
        join: Callable[[str], Awaitable[bool]],
        tell: Callable[[str, str], None],
        *,
        engines: int,
        most: int,
        slow_seconds: float,
    ) -> None:
        """`join(engine)` has it take part, and says whether it does. `tell(engine, sentence)` is told what
        becomes of it. engines: the run began with. most: to start. slow_seconds: it is said of an engine that
        takes longer."""
        self.cluster = cluster
        self.join = join
        self.tell = tell
        self.most = self.left = most
        self.slow_seconds = slow_seconds
        self._numbers = count(engines)
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: asyncio.Queue[BaseException] = asyncio.Queue()

    def replace(self, lost: str) -> None:
        """Have an engine started in place of `lost`."""
        if self.most:
            self._tasks.add(task := asyncio.create_task(self._replace(lost)))
            task.add_done_callback(self._ended)

    async def failed(self) -> None:
        """Raises what `join` does, once it has."""
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
            self.tell(name, f"{name} starts in place of {lost}")
            try:
                address = await self._started(name)
            except StartError as error:
                self.tell(name, str(error))
                await asyncio.sleep(pause)
                pause *= 2
                continue
            if await self.join(name):
                self.tell(name, f"{name} has taken the place of {lost}, on node {address}")
            # Of one that has died meanwhile whoever noticed that asks for another one.
            return
        self.tell(lost, f"{lost} is not replaced: engine.max_restarts is {self.most}")

    async def _started(self, name: str) -> str:
        starting = asyncio.ensure_future(self.cluster.add_engine(name))
        try:
            await asyncio.wait({starting}, timeout=self.slow_seconds)
            if not starting.done():
                self.tell(
                    name,
                    f"{name} has not started within {self.slow_seconds:g} s: it waits until a node has room "
                    "for it (engine.cpus, engine.gpus), or its log says why",
                )
            return await starting
        finally:
            starting.cancel()
