"""`ModelActor`: one frozen model of `[[models]]` in a Ray actor: the pool in front of it, and its server."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from envs.chat_model import ChatAnswer, ChatRequest, ModelFault
from rl.actors.actor_method import actor_method
from rl.actors.heartbeat import Heartbeat, own_heartbeat
from rl.model_table import ModelTable
from rl.models.call import Call
from rl.models.server import ServerFailed
from rl.models.service import ModelService
from rl.nodes.process import log_to
from rl.record.model_state import ModelState


@dataclass(frozen=True)
class ModelReport:
    """Report of a service since the last one. said: sentences for the user."""

    state: ModelState
    calls: tuple[Call, ...]
    said: tuple[str, ...]


class ModelActor:
    """One frozen model, for all controllers and hosts of a run."""

    def __init__(self, table: ModelTable, key: str, log: str) -> None:
        """key: of a server at a URL, "" where it needs none."""
        log_to(log)
        self.said: list[str] = []
        server_log = Path(log).with_name(f"{Path(log).stem}-vllm.log")
        self.service = ModelService(table, key, server_log, self.said.append)
        self._starting: asyncio.Task[None] | None = None

    @actor_method
    async def start(self) -> None:
        """Answer once the model can be asked. Raises ServerFailed.

        An actor that Ray has started anew begins with its first question.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self.service.start())
        await asyncio.shield(self._starting)

    @actor_method
    async def ask(self, request: ChatRequest) -> ChatAnswer:
        """Return the model's answer. Raises ModelFault."""
        try:
            await self.start()
        except ServerFailed as error:
            if self.service.server is None:  # a server of others: it may have been repaired
                self._starting = None
            raise ModelFault(f"model {self.service.name!r}: {error}") from None
        return await self.service.ask(request)

    @actor_method
    async def report(self) -> ModelReport:
        """Return the state, and what came since the last report."""
        said, self.said[:] = tuple(self.said), []
        return ModelReport(self.service.state(), tuple(self.service.take_calls()), said)

    @actor_method
    async def heartbeat(self) -> Heartbeat:
        """Answer that this actor is there."""
        return own_heartbeat()

    @actor_method
    async def close(self) -> None:
        """End the server."""
        await self.service.close()
