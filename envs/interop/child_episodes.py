"""Waits for episodes that a child interpreter plays beside each other (`concurrent_episodes.py`).

One task for each child asks it for all of them at once, every LOOK_SECONDS while any is waited for.
"""

import asyncio
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from envs.interop.interpreter import ChildInterpreter
from envs.message import JsonObject

LOOK_SECONDS = 0.05


@dataclass
class _Waiting:
    """Who waits for a child's episodes, by number, and the task that looks for their ends."""

    futures: dict[int, "asyncio.Future[JsonObject]"] = field(
        default_factory=dict[int, "asyncio.Future[JsonObject]"]
    )
    looking: "asyncio.Task[None] | None" = None

    async def look(self, child: ChildInterpreter) -> None:
        """Consumes: what the child says of its episodes. Produces: their futures' results. Ends when nobody
        waits; a child that does not answer in its time is killed by whoever asks it (`ChildInterpreter`)."""
        while self.futures:
            try:
                found: dict[str, JsonObject] = await child.ask("ended", numbers=[*self.futures])
            except Exception as error:  # each that waits is told
                for future in self.futures.values():
                    if not future.done():
                        future.set_exception(error)
                found = {}
            for number, outcome in found.items():
                future = self.futures.get(int(number))
                if future is not None and not future.done():
                    future.set_result(outcome)
            await asyncio.sleep(LOOK_SECONDS)


_CHILDREN: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[ChildInterpreter, _Waiting]] = (
    WeakKeyDictionary()
)


async def ended(child: ChildInterpreter, number: int) -> JsonObject:
    """Wait until an episode has ended; returns what came of it. Raises HostFault where the child is gone."""
    loop = asyncio.get_running_loop()
    waiting = _CHILDREN.setdefault(loop, {}).setdefault(child, _Waiting())
    waiting.futures[number] = loop.create_future()
    if waiting.looking is None or waiting.looking.done():
        waiting.looking = loop.create_task(waiting.look(child))
    try:
        return await waiting.futures[number]
    finally:
        waiting.futures.pop(number, None)
