"""MCP servers as a source of tools: a subclass gives tasks, opening and score; the servers give the tools.

    class Desk(McpEnv):
        name = "desk"
        def sample(self, rng): ...
        async def reset(self, task): return [Message("user", task.data["request"])]
        async def score(self): return {"solved": float(self.answer == self.wanted)}

    config = { servers = [{ name = "files", command = ["files-server", "--stdio"] }] }

The tools of every server are listed at reset, with their schemas. A server is shared by the episodes of its
host unless it keeps state (`shared = false`: one per episode, ended with it).
"""

import asyncio
import difflib
import importlib
import inspect
import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from envs.address import http_address
from envs.dynamic_tool import DynamicTool, object_schema
from envs.env import Env, EnvConfig
from envs.episode_folder import MARK, EpisodeFolder
from envs.interop.blocking import run_now
from envs.message import JsonObject, ToolSchema
from envs.optional import needed_by
from envs.tool import ToolError, ToolOptions

if TYPE_CHECKING:
    from mcp_types import ContentBlock, Tool

    from envs.interop.mcp_connection import Connection

_INVALID_PARAMS = -32602


class McpServer(BaseModel):
    """A server: a command (with its environment variables) or a URL (with its headers).

    tools: which of its tools the policy gets (default: all). prefix: put before their names.
    shared: one server for all episodes of a host; false: one per episode, for a server that keeps state.
    folder: where its process runs.

    `{episode}` in a command, its variables or its folder is a folder of the episode's own; in a URL and its
    headers it is a name of its own. Such a server is not shared.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    command: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    folder: str = ""
    url: str = ""
    headers: dict[str, str] = {}
    tools: tuple[str, ...] = ()
    prefix: str = ""
    shared: bool = True

    @model_validator(mode="after")
    def _one_way(self) -> "McpServer":
        if bool(self.command) == bool(self.url):
            raise ValueError(f"server {self.name!r}: give exactly one of command and url")
        try:
            _ = self.url and http_address(self.url)
        except ValueError as error:
            raise ValueError(f"server {self.name!r}: url: {error}") from None
        if self.url and self.folder:
            raise ValueError(f"server {self.name!r}: folder is of a command, and not of a url")
        if self.of_an_episode and self.shared and "shared" in self.model_fields_set:
            raise ValueError(
                f"server {self.name!r}: {MARK} is of one episode, so no other can share it: leave shared out"
            )
        return self

    @property
    def of_an_episode(self) -> bool:
        """True if `{episode}` stands in its settings."""
        pairs = (*self.environment.values(), *self.headers.values())
        return any(MARK in text for text in (*self.command, *pairs, self.folder, self.url))

    @property
    def is_shared(self) -> bool:
        """True for one server for all episodes of a host."""
        return self.shared and not self.of_an_episode

    def filled(self, folder: EpisodeFolder) -> "McpServer":
        """The settings for one episode."""
        if not self.of_an_episode:
            return self

        def named(text: str) -> str:
            return text.replace(MARK, folder.name)

        changes = {
            "command": tuple(map(folder.fill, self.command)),
            "environment": {key: folder.fill(value) for key, value in self.environment.items()},
            "folder": folder.fill(self.folder),
            "url": named(self.url),
            "headers": {key: named(value) for key, value in self.headers.items()},
        }
        return self.model_copy(update=changes)


class McpConfig(EnvConfig):
    """servers: where the tools come from."""

    servers: tuple[McpServer, ...] = Field(min_length=1)

    @field_validator("servers")
    @classmethod
    def _distinct(cls, servers: tuple[McpServer, ...]) -> tuple[McpServer, ...]:
        names = [server.name for server in servers]
        if len(set(names)) < len(names):
            raise ValueError(f"two servers have the same name: {', '.join(names)}")
        return servers


class McpEnv(Env):
    """Base of environments whose tools are those of MCP servers.

    `episode.path` is a folder of this episode's own, which `{episode}` stands for in the settings.
    """

    config_type = McpConfig
    config: McpConfig

    def __init__(self, config: EnvConfig) -> None:
        super().__init__(config)
        self.connections: dict[str, Connection] = {}
        self.episode = EpisodeFolder()

    def probe(self) -> None:
        """Every server starts and has the tools that are asked for."""

        async def look() -> None:
            try:
                await self.dynamic_tools()
            finally:
                await self.close()
                await _end_shared()

        run_now(look())

    async def dynamic_tools(self) -> Sequence[DynamicTool]:
        tools: dict[str, DynamicTool] = {}
        for server in self.config.servers:
            for tool in await self._tools(server):
                if tool.name in tools:
                    raise ValueError(
                        f"server {server.name!r}: another has a tool {tool.name!r} too: give it a prefix"
                    )
                tools[tool.name] = tool
        return list(tools.values())

    async def call_server(self, server: str, tool: str, **arguments: Any) -> str:
        """Call a tool for the environment itself, say to set up or to judge its world.

        Raises ToolError with what the tool says of its failure, HostFault where the server is gone.
        """
        found = next(one for one in self.config.servers if one.name == server)
        return await _call(await self._connection(found), tool, arguments)

    async def close(self) -> None:
        """End this episode's own servers. A subclass that overrides it has to call it."""
        own = [server.name for server in self.config.servers if not server.is_shared]
        try:
            # At once: a slow one takes no other's time.
            await asyncio.gather(
                *(self.connections[n].close() for n in own if n in self.connections)
            )
        finally:
            await asyncio.to_thread(self.episode.remove)

    async def _connection(self, server: McpServer) -> "Connection":
        if server.name not in self.connections:
            if server.is_shared:
                connection = await _shared(server)
            else:
                connection = await _connect(server.filled(self.episode))
            self.connections[server.name] = connection
            self.notes[f"mcp {server.name}"] = connection.server
        return self.connections[server.name]

    async def _tools(self, server: McpServer) -> list[DynamicTool]:
        connection = await self._connection(server)
        known = {tool.name: tool for tool in await connection.list_tools()}
        for name in server.tools:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
                raise ValueError(f"server {server.name!r} has no tool {name!r}: {hint}")
        return [
            _tool(known[name], connection, server.prefix) for name in (server.tools or tuple(known))
        ]


def _tool(listed: "Tool", connection: "Connection", prefix: str) -> DynamicTool:
    description = inspect.cleandoc(listed.description or "")
    read_only = bool(listed.annotations and listed.annotations.read_only_hint)
    return DynamicTool(
        ToolSchema(prefix + listed.name, description, object_schema(listed.input_schema)),
        partial(_call, connection, listed.name),
        ToolOptions(read_only=read_only),
    )


async def _call(connection: "Connection", tool: str, arguments: JsonObject) -> str:
    from envs.interop.mcp_connection import McpError

    try:
        result = await connection.call_tool(tool, arguments)
    except McpError as error:
        if error.code == _INVALID_PARAMS:
            raise ToolError(error.message) from None
        raise
    text = "\n".join(_text(part) for part in result.content)
    if not text and result.structured_content is not None:
        text = json.dumps(result.structured_content, ensure_ascii=False)
    if result.is_error:
        raise ToolError(text)
    return text


def _text(part: "ContentBlock") -> str:
    """Return one part of a result as text; what is not text is named."""
    from mcp_types import EmbeddedResource, TextContent, TextResourceContents

    if isinstance(part, TextContent):
        return part.text
    if isinstance(part, EmbeddedResource) and isinstance(part.resource, TextResourceContents):
        return part.resource.text
    return f"[{part.type}]"


async def _connect(server: McpServer) -> "Connection":
    """Open a connection and wait for its introduction. Raises HostFault."""
    # In a thread: the first import takes seconds on a busy machine, and other episodes share this loop.
    await asyncio.to_thread(_import_client, server.name)
    from envs.interop.mcp_connection import HttpConnection, StdioConnection

    connection: Connection
    if server.command:
        connection = StdioConnection(server.name, server.command, server.environment, server.folder)
    else:
        connection = HttpConnection(server.name, server.url, server.headers)
    try:
        await connection.introduce()
    except BaseException:
        await connection.close()
        raise
    return connection


def _import_client(server: str) -> None:
    with needed_by(f"MCP server {server!r}"):
        importlib.import_module("mcp.client.streamable_http")


# The servers that the episodes of an event loop share, by their settings. A connection lives and dies with
# the loop that it was made in.
_Shared: TypeAlias = "dict[str, asyncio.Task[Connection]]"
_SHARED: WeakKeyDictionary[asyncio.AbstractEventLoop, _Shared] = WeakKeyDictionary()


async def _shared(server: McpServer) -> "Connection":
    """The one connection to a server that is shared; a new one where the last is gone."""
    held = _SHARED.setdefault(asyncio.get_running_loop(), {})
    key = server.model_dump_json()
    task = held.get(key)
    if task is None or (task.done() and _is_over(task)):
        task = held[key] = asyncio.create_task(_connect(server))
    return await asyncio.shield(task)


def _is_over(task: "asyncio.Task[Connection]") -> bool:
    return task.cancelled() or task.exception() is not None or bool(task.result().gone)


async def _end_shared() -> None:
    """End what this event loop shares."""
    for task in _SHARED.pop(asyncio.get_running_loop(), {}).values():
        if task.done() and not _is_over(task):
            await task.result().close()
