"""The wire to an OpenAI-compatible server: one question as one POST, and what goes wrong in its class.

Used for servers at a URL and for those of the run's own (`rl.models.server`). Keeps no time: the pool does.
"""

import json
from types import TracebackType
from typing import Any

from envs.chat_model import ChatAnswer, ChatRequest
from rl.models.call import ServiceFault
from rl.models.http_wire import SHOWN, HttpWire


class ChatWire(HttpWire):
    """One server. Use it as `async with`, or `close` it."""

    async def __aenter__(self) -> "ChatWire":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def send(self, request: ChatRequest) -> ChatAnswer:
        """Ask the question once. Raises ServiceFault, Refused."""
        body: dict[str, Any] = {
            "model": await self.model_name(),
            "messages": [message.as_chat() for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
        }
        if request.temperature > 0:
            body["seed"] = request.number
        if request.schema is not None:
            described = {"name": "answer", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": described}
        found = await self.asked("POST", "/chat/completions", body)
        try:
            choice = found["choices"][0]
            text = choice["message"].get("content") or ""
            usage = found.get("usage") or {}
            return ChatAnswer(
                text=str(text),
                model=str(found.get("model") or body["model"]),
                prompt_tokens=int(usage.get("prompt_tokens") or 0),
                completion_tokens=int(usage.get("completion_tokens") or 0),
                cut=choice.get("finish_reason") == "length",
            )
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            shown = json.dumps(found)[:SHOWN]
            raise ServiceFault(f"{self.base}: no choices[0].message: {shown}") from None
