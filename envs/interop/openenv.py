"""An OpenEnv server by WebSocket: one socket is one episode, its actions are the policy's tools.

    config = { url = "http://127.0.0.1:8000", reset = { difficulty = "hard" } }

`GET /schema` gives the actions: a tool per kind of action, called by its title (`GuessAction` is `guess`); a
server whose action is "call a tool" offers its own tools. A task is a seed and the settings of `reset`: the
server has to make the same world of the same seed. The episode ends where the server says `done`.

Leaves out: task sets of a server (`/tasks`), and images in observations.
"""

import asyncio
import contextlib
import inspect
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from pydantic import PositiveFloat, field_validator

from envs.address import http_address
from envs.deadline import seconds_left
from envs.dynamic_tool import DynamicTool, as_object, object_schema, resolve
from envs.env import Deadlines, Env, EnvConfig, Task
from envs.interop.blocking import run_now, within
from envs.message import JsonObject, Message, ToolSchema
from envs.optional import needed_by
from envs.session import HostFault
from envs.tool import ToolError

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

LONGEST_MESSAGE = 16 * 2**20
_OURS = ("reward", "done", "metadata")


# A full server is asked again so often, until so long before the reset's deadline.
ASK_AGAIN_SECONDS = 0.5
LAST_SECONDS = 1.0
# A reset outside of a session has no deadline.
LONGEST_SECONDS = 5.0
# The protocol's code for a full server, the WebSocket's ("try again later"), HTTP's.
_FULL = ("CAPACITY_REACHED", "1013", "HTTP 503", "HTTP 429")


class Full(HostFault):
    """The server has no session to give at present."""


@dataclass
class _Line:
    """The episodes of an event loop that have, or wait for, a session of one server."""

    freed: asyncio.Event = field(default_factory=asyncio.Event)

    def let_go(self) -> None:
        """Give a session back, and let those that wait ask again."""
        self.freed.set()
        self.freed = asyncio.Event()


_LINES: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Line]] = WeakKeyDictionary()


class OpenEnvConfig(EnvConfig):
    """url: of the server. reset: what its reset takes besides the seed. instructions: the rules, before the
    first observation. connect_seconds: for reaching the server. turn_rewards: each step's reward is its
    turn's, and not the end's.
    """

    url: str
    reset: JsonObject = {}
    instructions: str = ""
    connect_seconds: PositiveFloat = 10.0
    turn_rewards: bool = False

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        return http_address(url)


class OpenEnv(Env):
    """An environment on an OpenEnv server."""

    name = "openenv"
    config_type = OpenEnvConfig
    config: OpenEnvConfig
    # A reset may wait until another episode lets a session go.
    deadlines = Deadlines(reset_seconds=600.0)
    socket: "ClientConnection | None" = None
    line: "_Line | None" = None

    def probe(self) -> None:
        """The server answers and has actions."""
        run_now(within(self._facts(), 2 * self.config.connect_seconds, f"{self.config.url}/schema"))

    def sample(self, rng: random.Random) -> JsonObject:
        return {"seed": rng.randrange(2**31), "reset": self.config.reset}

    async def reset(self, task: Task) -> list[Message]:
        self.total = 0.0
        self.actions, about = await self._facts()
        self.notes["openenv"] = f"{about.get('name', '')} {about.get('version', '')}"
        data = {"seed": task.data["seed"], **task.data["reset"]}
        text = self._seen(await self._begin(data))
        return [Message("user", "\n\n".join(filter(None, (self.config.instructions, text))))]

    async def _begin(self, data: JsonObject) -> JsonObject:
        """Connect and reset the world, once the server has a session to give.

        A server without one is asked again until the reset's deadline: an episode of this process lets one
        go, or one of another host. Raises HostFault.
        """
        began = time.monotonic()
        left = seconds_left()
        longest = LONGEST_SECONDS if left is None else left - LAST_SECONDS
        line = _LINES.setdefault(asyncio.get_running_loop(), {}).setdefault(
            self.config.url, _Line()
        )
        while True:
            freed = line.freed
            try:
                self.socket = await self._connected()
                world = await self._ask("reset", data)
            except Full as full:
                await self._hang_up()
                if (waited := time.monotonic() - began) > longest:
                    raise HostFault(
                        f"{full}; none became free within {waited:.0f} s: let the server have more sessions, "
                        "or fewer episodes run at once (concurrency)"
                    ) from None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ASK_AGAIN_SECONDS):
                        await freed.wait()
                continue
            self.line = line
            return world

    async def _connected(self) -> "ClientConnection":
        with needed_by("environment 'openenv'"):
            from websockets.asyncio.client import connect
        try:
            return await connect(
                f"ws{self.config.url.removeprefix('http')}/ws",
                open_timeout=self.config.connect_seconds,
                max_size=LONGEST_MESSAGE,
            )
        except Exception as error:  # refused, no WebSocket, too slow: all of them the server's
            raise self._gone(error) from None

    async def dynamic_tools(self) -> Sequence[DynamicTool]:
        if {"tool_name", "arguments"} <= set(self.actions.get("properties", {})):
            return await self._server_tools()
        root = self.actions
        variants = [resolve(one, root) for one in root.get("oneOf", root.get("anyOf", [root]))]
        return [self._action_tool(variant) for variant in variants]

    def _action_tool(self, variant: JsonObject) -> DynamicTool:
        """One kind of action; a field that can have one value only is not asked for."""
        title = str(variant.get("title", "act")).removesuffix("Action") or "act"
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", title).lower()
        known = {k: v for k, v in variant.get("properties", {}).items() if k != "metadata"}
        fixed = {k: v["const"] for k, v in known.items() if "const" in v}
        wanted = {
            "properties": {k: v for k, v in known.items() if k not in fixed},
            "required": [k for k in variant.get("required", []) if k not in fixed],
            "additionalProperties": False,
        }
        if "$defs" in self.actions:
            wanted["$defs"] = self.actions["$defs"]
        description = inspect.cleandoc(str(variant.get("description", "")))
        schema = ToolSchema(name, description, object_schema(wanted))
        return DynamicTool(schema, lambda arguments: self._step({**arguments, **fixed}))

    async def _server_tools(self) -> list[DynamicTool]:
        request: JsonObject = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        tools: list[JsonObject] = as_object((await self._ask("mcp", request)).get("result")).get(
            "tools", []
        )
        return [
            DynamicTool(
                ToolSchema(
                    tool["name"],
                    inspect.cleandoc(tool.get("description") or ""),
                    object_schema(tool.get("inputSchema") or tool.get("input_schema") or {}),
                ),
                partial(self._call_tool, tool["name"]),
            )
            for tool in tools
        ]

    async def _call_tool(self, name: str, arguments: JsonObject) -> str:
        return await self._step({"type": "call_tool", "tool_name": name, "arguments": arguments})

    async def _step(self, action: JsonObject) -> str:
        return self._seen(await self._ask("step", action))

    def _seen(self, data: JsonObject) -> str:
        """An observation as text, its reward counted."""
        reward = float(data.get("reward") or 0.0)
        if self.config.turn_rewards and self.turn_index >= 0:
            self.reward(reward, "return")
        else:  # in `reset` there is no turn yet
            self.total += reward
        self.done = bool(data.get("done"))
        given: object = data.get("observation") or {}
        observation = as_object(given)
        if observation is not given:  # no record, which the protocol asks for
            return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        seen = {k: v for k, v in observation.items() if k not in _OURS}
        if seen.get("error") and "tool_name" in seen:
            raise ToolError(str(as_object(seen["error"]).get("message", seen["error"])))
        result = as_object(seen.get("result")) if "tool_name" in seen else {}
        if "content" in result:
            parts: list[JsonObject] = result["content"]
            return "\n".join(str(part.get("text", "")) for part in parts)
        texts = [value for value in seen.values() if isinstance(value, str)]
        return texts[0] if len(seen) == len(texts) == 1 else json.dumps(seen, ensure_ascii=False)

    async def _ask(self, type: str, data: JsonObject) -> JsonObject:
        """One exchange.

        Raises ToolError for an action that the server refuses, HostFault where it is gone.
        """
        from websockets.exceptions import ConnectionClosed

        assert self.socket is not None, "reset connects"
        try:
            # A server that hangs up may have said why before it heard us.
            with contextlib.suppress(ConnectionClosed):
                await self.socket.send(json.dumps({"type": type, "data": data}))
            answer = json.loads(await self.socket.recv())
            kind, body = answer["type"], as_object(answer["data"])
            if body is not answer["data"]:
                raise TypeError(f"data is {answer['data']!r}")
        except (ValueError, KeyError, TypeError) as error:
            why = f"{type}: {error.__class__.__name__}: {error}"
            raise HostFault(f"{self.config.url} does not speak OpenEnv: {why}") from None
        except Exception as error:  # the socket's own errors
            raise self._gone(error) from None
        if kind != "error":
            return body
        code, message = body.get("code"), body.get("message", "")
        if code == "VALIDATION_ERROR" and type == "step":
            first = as_object((body.get("errors") or [None])[0])
            where = ".".join(str(part) for part in first.get("loc", ()))
            raise ToolError(f"argument {where}: {first.get('msg', message)}" if where else message)
        if code in ("EXECUTION_ERROR", "VALIDATION_ERROR"):
            raise RuntimeError(f"{self.config.url}, {type}: {message}")
        fault = Full if type == "reset" and code in _FULL else HostFault
        raise fault(f"{self.config.url}, {type}: {code}: {message}")

    async def score(self) -> dict[str, float]:
        """`return`: the sum of the server's rewards, without those that turns were given."""
        return {"return": self.total}

    async def close(self) -> None:
        try:
            await self._hang_up()
        finally:
            line, self.line = self.line, None
            if line is not None:
                line.let_go()

    async def _hang_up(self) -> None:
        if self.socket is not None:
            await self.socket.close()

    async def _facts(self) -> tuple[JsonObject, JsonObject]:
        """The schema of an action, and the server's description of itself ({}: it gives none)."""
        with needed_by("environment 'openenv'"):
            import httpx
        # Certificates take a while to load, and plain HTTP needs none.
        secure = self.config.url.startswith("https")
        seconds = self.config.connect_seconds
        try:
            async with httpx.AsyncClient(timeout=seconds, verify=secure) as client:
                schema = await client.get(f"{self.config.url}/schema")
                schema.raise_for_status()
                about = await client.get(f"{self.config.url}/metadata")
                actions: JsonObject = schema.json()["action"]
                metadata: JsonObject = {}
                if about.is_success:
                    metadata = about.json()
        except httpx.HTTPError as error:
            raise self._gone(error) from None
        except (ValueError, KeyError, TypeError):
            raise HostFault(f"{self.config.url}/schema is not OpenEnv's") from None
        return actions, metadata

    def _gone(self, error: Exception) -> HostFault:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        fault = Full if any(f" {code}" in reason for code in _FULL) else HostFault
        return fault(f"OpenEnv server {self.config.url} does not answer: {reason}")
