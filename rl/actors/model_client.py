"""The frozen models of a run as a controller's judges see them (`envs.chat_model.ChatModel`).

An answer is waited for as long as the service's actor shows signs of life: its pool bounds every call. One
that is gone is asked again when Ray has started it anew, for `hold_seconds`.
"""

import asyncio
import time

from ray.exceptions import RayActorError, RayError

from envs.chat_model import ChatAnswer, ChatRequest, ModelFault
from envs.deadline import paused
from rl.actors.actor_method import Handle, find_actor
from rl.actors.model_service import ModelActor
from rl.model_table import ModelTable
from rl.nodes.deadline import within
from rl.nodes.process import cause, first_line

# Between two looks at an actor that owes an answer, and for its sign of life.
LOOK_SECONDS, LIFE_SECONDS = 30.0, 30.0
# Before an actor that is gone is asked again.
AGAIN_SECONDS = 1.0
PREFIX = "model-"


class _NotThere(Exception):
    """Ray knows no actor of the service's name."""


class ModelClient:
    """One frozen model of the run."""

    def __init__(self, table: ModelTable, namespace: str) -> None:
        self.table = table
        self.namespace = namespace
        self._actor: Handle[ModelActor] | None = None

    @property
    def name(self) -> str:
        """The name in the settings."""
        return self.table.name

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        """Return the model's answer; the clock of the judge in progress stands still. Raises ModelFault."""
        begun = time.monotonic()
        with paused():
            while True:
                try:
                    return await self._ask(self._found(), request)
                except _NotThere:
                    said = "there is none of its name"
                except RayActorError as error:
                    self._actor, said = None, first_line(error)
                except RayError as error:
                    # Raised as the cause's class too: the sentence without the traceback is in the cause.
                    fault = cause(error)
                    where = "" if isinstance(fault, ModelFault) else f"model {self.name!r}: "
                    raise ModelFault(f"{where}{fault}") from None
                if time.monotonic() - begun > self.table.hold_seconds:
                    raise ModelFault(f"model {self.name!r}: its actor is gone: {said}")
                await asyncio.sleep(AGAIN_SECONDS)

    def _found(self) -> Handle[ModelActor]:
        """The actor's handle. Raises _NotThere."""
        if self._actor is None:
            try:
                self._actor = find_actor(ModelActor, f"{PREFIX}{self.name}", self.namespace)
            except ValueError:
                raise _NotThere from None
        return self._actor

    async def _ask(self, actor: Handle[ModelActor], request: ChatRequest) -> ChatAnswer:
        answer = asyncio.ensure_future(actor.ask.remote(request))
        try:
            while not (await asyncio.wait({answer}, timeout=LOOK_SECONDS))[0]:
                try:
                    await within(actor.heartbeat.remote(), LIFE_SECONDS)
                except TimeoutError:
                    said = f"its actor has not answered for {LIFE_SECONDS:g} s"
                    raise ModelFault(f"model {self.name!r}: {said}") from None
            return answer.result()
        finally:
            answer.cancel()
