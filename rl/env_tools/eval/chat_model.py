"""A model behind an OpenAI-compatible server (`/v1/chat/completions` with tools), as an episode's policy.

What comes back is text and tool calls. So there are no token ids, and none are made up: the turns of such
a trajectory have empty ids and log-probs, and are no training data.
"""

import asyncio
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from envs.message import JsonObject, Message, ToolCall, ToolSchema
from envs.text import told
from rollout.engine import Completion, EngineFault, Request
from rollout.format import FORMATS
from rollout.reading import Written, flaw_of, read

# Of an answer that is an error, so much is shown.
_SHOWN = 200
MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class ChatServer:
    """base: such as `http://127.0.0.1:8000/v1`. model: as the server calls it. seconds: of one request.

    The key, where one is needed, is read from $OPENAI_API_KEY.
    """

    base: str
    model: str
    temperature: float
    seconds: float
    threads: ThreadPoolExecutor

    async def ask(self, path: str, body: JsonObject | None = None) -> JsonObject:
        """The server's JSON answer. Raises EngineFault."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self.threads, request, self.base + path, body, self.seconds
        )


def request(url: str, body: JsonObject | None, seconds: float) -> JsonObject:
    """POST this body, or GET where there is none; the JSON object that comes back. Raises EngineFault, also
    for an answer that has not ended after `seconds`, or that is longer than MOST_BYTES."""
    deadline = time.monotonic() + seconds
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, headers), timeout=seconds
        ) as answer:
            found = json.loads(_whole(answer, deadline))
    except urllib.error.HTTPError as error:
        try:
            said = error.read(4 * _SHOWN).decode(errors="replace")[:_SHOWN]
        except (OSError, http.client.HTTPException):
            said = "and no text that can be read"
        raise EngineFault(f"{url}: HTTP {error.code}: {said}") from None
    except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
        raise EngineFault(f"{url}: {told(error)}") from None  # no connection, not in time, no JSON
    if not isinstance(found, dict):
        raise EngineFault(f"{url}: the answer is no JSON object")
    return found


def _whole(answer: http.client.HTTPResponse, deadline: float) -> bytes:
    """The body, read as it comes. Raises TimeoutError, ValueError."""
    parts: list[bytes] = []
    size = 0
    while part := answer.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            raise ValueError(f"the answer is longer than {MOST_BYTES >> 20} MB")
        if time.monotonic() > deadline:
            raise TimeoutError("the answer did not end in time")
    return b"".join(parts)


class ChatPolicy:
    """One episode's conversation (`rollout.episode.Rendering`, and its `generate` an engine's).

    written: the tokens that the server says it wrote in it.
    """

    def __init__(self, server: ChatServer) -> None:
        self.server = server
        self.chat: list[JsonObject] = []
        self.tools: list[JsonObject] = []
        self.said: JsonObject = {}
        self.written = 0

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        """Begin the conversation. No ids."""
        self.chat = [message.as_chat() for message in messages]
        self.tools = [tool.as_chat() for tool in tools]
        return []

    def suffix(self, messages: Sequence[Message], completion: Sequence[int]) -> list[int]:
        """Go on with what the environment said. No ids."""
        calls = [call["id"] for call in self._calls()]
        results = [message for message in messages if message.role == "tool"]
        if len(results) == 1:  # of a call that cannot be read: every call has to have an answer
            results *= max(1, len(calls))
        self.chat += [
            {"role": "tool", "tool_call_id": id, "content": result.content}
            for id, result in zip(calls, results, strict=False)
        ]
        self.chat += [message.as_chat() for message in messages if message.role != "tool"]
        return []

    async def generate(self, request: Request) -> Completion:
        """The next turn. Raises EngineFault."""
        body: JsonObject = {
            "model": self.server.model,
            "messages": self.chat,
            "temperature": self.server.temperature,
            "max_tokens": request.max_tokens,
        }
        if (sampling := request.sampling) is not None:
            body |= {"temperature": sampling.temperature, **sampling.cuts}
            if sampling.stop:
                body["stop"] = list(sampling.stop)
        if self.tools:
            body["tools"] = self.tools
        answer = await self.server.ask("/chat/completions", body)
        try:
            choice = answer["choices"][0]
            self.said = choice["message"]
            reason = choice.get("finish_reason")
            calls = [{"id": c["id"], **_plain(c)} for c in self._calls()]
        except (KeyError, IndexError, TypeError, AttributeError):
            raise EngineFault(
                f"{self.server.base}: the answer has no choices[0].message: "
                f"{json.dumps(answer)[:_SHOWN]}"
            ) from None
        usage = answer.get("usage")
        count = usage.get("completion_tokens") if isinstance(usage, dict) else None
        self.written += count if isinstance(count, int) else 0
        mine: JsonObject = {"role": "assistant", "content": self.said.get("content") or ""}
        self.chat.append({**mine, "tool_calls": calls} if calls else mine)
        return Completion(
            (), (), (), "length" if reason == "length" else "stop", engine=self.server.base
        )

    def text(self, ids: Sequence[int]) -> str:
        """Return nothing: there are no ids."""
        return ""

    def forgets(self, messages: Sequence[Message], thought: bool) -> bool:
        """Answer that earlier turns stay as they are."""
        return False

    def read(self, completion: Sequence[int], tools: Sequence[ToolSchema]) -> Written:
        """Read the last answer; a server may have taken its thought apart."""
        found = read(self.said.get("content") or "", tools, FORMATS["text"])
        reasoning = found.reasoning or str(self.said.get("reasoning_content") or "")
        calls: list[ToolCall] = []
        for call in self._calls():
            name, written = call["function"]["name"], call["function"].get("arguments") or "{}"
            try:
                arguments = json.loads(written) if isinstance(written, str) else written
            except (ValueError, RecursionError):
                arguments = None
            why = "the arguments have to be a JSON object"
            if not isinstance(arguments, dict) or (why := flaw_of(arguments)):
                return Written(reasoning, found.answer, malformed=f"{name}: {why}")
            calls.append(ToolCall(name, arguments))
        return Written(reasoning, found.answer, tuple(calls))

    def _calls(self) -> list[JsonObject]:
        return self.said.get("tool_calls") or []


def _plain(call: JsonObject) -> JsonObject:
    written = call["function"]
    function = {"name": written["name"], "arguments": written.get("arguments") or "{}"}
    return {"type": "function", "function": function}
