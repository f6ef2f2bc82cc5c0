"""One frozen model as a service: its pool, the wire, and the server where it has a checkpoint.

Knows no Ray: `rl.actors.model_service` has one in an actor of a run, `dorado judge` one in its own process.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from envs.chat_model import ChatAnswer, ChatRequest
from rl.model_table import ModelTable
from rl.models.call import Call
from rl.models.chat_wire import ChatWire
from rl.models.pool import Pool
from rl.models.server import Server, ServerFailed
from rl.record.model_state import ModelState

# Requests in a row that a server has to leave unanswered to be called deaf.
LEAST_FAULTS = 2


class ModelService:
    """One frozen model that answers, whatever serves it (`envs.chat_model.ChatModel`)."""

    def __init__(self, table: ModelTable, key: str, log: Path, say: Callable[[str], None]) -> None:
        """key: of a server at a URL. log: of a server of its own. say: hears a sentence of each change."""
        self.table = table
        self.server = Server(table.name, table.path, table.serve, log, say) if table.path else None
        self.wire = ChatWire(table.url or "", key=key, model=table.model)
        self.pool = Pool(table, lambda request: self.wire.send(request))
        self._watching: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The name in the settings."""
        return self.table.name

    async def start(self) -> None:
        """Start what serves the model, and wait until it answers. Raises ServerFailed.

        A server at a URL is not asked: one that is away now may be there when it is needed.
        """
        if self.server is None:
            return
        self.server.start()
        await self.server.ready()
        self.wire = ChatWire(self.server.url, key=self.server.key, model=self.server.model)
        self._watching = asyncio.create_task(self._watch(self.server))

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        """Return the model's answer. Raises ModelFault."""
        return await self.pool.ask(request)

    def state(self) -> ModelState:
        """How it stands."""
        return replace(self.pool.state(), server=self.server.line if self.server else "")

    def take_calls(self) -> list[Call]:
        """The calls since the last time."""
        return self.pool.take_calls()

    async def close(self) -> None:
        """Give up what is being asked, and end the server."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self.pool.close()
        await self.wire.close()
        if self.server is not None:
            await asyncio.to_thread(self.server.end)

    async def _watch(self, server: Server) -> None:
        """Keep the server alive; where it cannot be, calls are held and then fail by the pool's own clock."""
        with suppress(ServerFailed):
            await server.watch(self._is_stuck, self.pool.back)

    def _is_stuck(self) -> bool:
        """True where requests have ended at their deadlines, several times over, and nobody was answered."""
        longest = 2.5 * self.table.request_seconds
        return self.pool.unanswered >= LEAST_FAULTS and self.pool.silent > longest
