"""`SuspendedAct`: an act on a host that stops where its user is asked, and goes on with the answer.

The model that plays a user is the run's: controllers ask it, hosts cannot. So an act whose environment asks
its user ends its call with the question (a `ChatRequest`) in the result's place, and waits; the controller
sends the answer as another call (`resume`), which ends with the act's result, or with its next question. The
clocks of the environment stand still meanwhile. An act that nobody resumes ends when its session is closed.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from envs.chat_model import ChatAnswer, ChatRequest
from envs.deadline import paused


class SuspendedAct:
    """The act in progress of one session whose user a model plays; a session has one at a time."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._act: asyncio.Task[object] | None = None
        self._question: asyncio.Future[ChatRequest] | None = None
        self._answer: asyncio.Future[ChatAnswer] | None = None

    async def run(self, act: Coroutine[Any, Any, object]) -> object:
        """The act's result, or the first question that it asks. Raises what the act raises."""
        self._act = asyncio.create_task(act)
        # Of one that is closed where it waits, nobody hears.
        self._act.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return await self._next(self._act)

    async def resume(self, answer: ChatAnswer) -> object:
        """The same, from the answer to its last question on. Raises ValueError where none was asked."""
        if self._act is None or self._answer is None or self._answer.done():
            raise ValueError("resume: the session's act has asked nothing")
        self._answer.set_result(answer)
        return await self._next(self._act)

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        """Ask the user's model, from within the act. Raises RuntimeError where no act is in progress."""
        async with self._turn:
            question = self._question
            if question is None or question.done():
                raise RuntimeError(
                    "the user is asked in an act of the episode only: reset, a tool, reply"
                )
            with paused():
                self._answer = asyncio.get_running_loop().create_future()
                question.set_result(request)
                return await self._answer

    async def _next(self, act: asyncio.Task[object]) -> object:
        self._question = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait({act, self._question}, return_when=asyncio.FIRST_COMPLETED)
            return act.result() if act.done() else self._question.result()
        finally:
            if act.done():
                self._question = self._act = None
