"""One connection to an MCP server, by the official client (`mcp`): to a process of ours, or by streamable
HTTP.

In: requests, many at once. Out: their typed results. A server that ends, does not answer a ping, or writes
what is no MCP is HostFault, for everybody who waits for it; an error that it answers with is McpError.

The client speaks the protocol. Ours is who is at fault, and the pipes to a process: the client's own
transport keeps the process to itself, and with it the exit status and the way to end it at once. Leaves out:
resources, prompts, sampling, roots (a server that asks for them is told so), and resuming a broken HTTP
stream.
"""

import asyncio
import contextlib
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar, cast

from pydantic import ValidationError

from envs.interop.mcp_http import fault_of, http_client
from envs.interop.mcp_pipes import PipeReader, PipeWriter
from envs.message import JsonObject
from envs.session import HostFault

if TYPE_CHECKING:
    from mcp import ClientSession, MCPError
    from mcp.client import Transport
    from mcp.client._transport import TransportStreams
    from mcp_types import CallToolResult, Tool

T = TypeVar("T")
# For a server to start and introduce itself.
START_SECONDS = 20.0
PING_SECONDS = 5.0
END_SECONDS = 2.0
LONGEST_LINE = 16 * 2**20
# What a server's process gets of ours: no keys.
_INHERITED = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "SHELL", "TERM")


class McpError(Exception):
    """The server answered with a JSON-RPC error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message


class Connection(ABC):
    """A session with a server. gone: how it ended, empty while it goes on. server: its name and version."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.gone = ""
        self.server = ""
        self._ending = asyncio.Event()
        self._session: asyncio.Future[ClientSession] = asyncio.get_running_loop().create_future()
        # The client's scopes have to be left by the task that entered them.
        self._owner = asyncio.create_task(self._hold())
        self._beside: set[asyncio.Task[None]] = set()

    @abstractmethod
    def _transport(self) -> "Transport":
        """Open the way to the server; its end leaves nothing behind."""

    async def introduce(self) -> None:
        """Wait for the first exchange. Raises HostFault where there is none within START_SECONDS."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.shield(self._session)
        except TimeoutError:
            raise HostFault(f"{self.where} did not start within {START_SECONDS:g} s") from None

    async def list_tools(self) -> "list[Tool]":
        """Fetch the tools of all pages. Raises McpError, HostFault."""
        from mcp_types import PaginatedRequestParams

        tools: list[Tool] = []
        cursor: str | None = None
        while True:
            asked = PaginatedRequestParams(cursor=cursor)
            page = await self._request("tools/list", lambda s, p=asked: s.list_tools(params=p))
            tools += page.tools
            cursor = page.next_cursor
            if not cursor:
                return tools

    async def call_tool(self, name: str, arguments: JsonObject) -> "CallToolResult":
        """Call a tool. Raises McpError, HostFault.

        The client's own `call_tool` would hold the result to the tool's output schema as well; here the
        policy sees it as it came.
        """
        from mcp_types import CallToolRequest, CallToolRequestParams, CallToolResult

        request = CallToolRequest(params=CallToolRequestParams(name=name, arguments=arguments))
        return await self._request("tools/call", lambda s: s.send_request(request, CallToolResult))

    async def close(self) -> None:
        """End the connection; what does not end by itself is cut off, also where nobody waits any more."""
        self._over(f"{self.where} was ended")
        try:
            if self._session.done():  # one that never began has nothing to end in good order
                await asyncio.wait({self._owner}, timeout=END_SECONDS)
        finally:
            self._owner.cancel()

    async def _hold(self) -> None:
        """Consumes: nothing. Produces: the session. Waits for: `_ending`. Unblocked by: `close`, the end of
        the server's output, a request that finds the connection closed; afterwards `gone` says why.
        """
        from mcp import ClientSession
        from mcp_types import Implementation

        us = Implementation(name="dorado", version="1")
        try:
            async with (
                self._transport() as (read, write),
                ClientSession(read, write, client_info=us) as session,
            ):
                about = (await session.initialize()).server_info
                self.server = f"{about.name} {about.version}"
                self._session.set_result(session)
                await self._ending.wait()
        except BaseException as error:
            self._over(self._why(error))
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._over(f"{self.where} was ended")
            if not self._session.done():
                self._session.set_exception(HostFault(self.gone))
                self._session.exception()  # nobody may wait for it any more

    async def _request(self, method: str, ask: "Callable[[ClientSession], Awaitable[T]]") -> T:
        """Ask, and return the result. Raises McpError, HostFault.

        Where the asker stops waiting, a ping finds out whether the server is still there; a server that does
        not answer it is ended, so that nobody else waits for it.
        """
        from mcp import MCPError

        if self.gone:
            raise HostFault(self.gone)
        try:
            return await ask(self._session.result())
        except asyncio.CancelledError:
            if method != "ping":
                task = asyncio.create_task(self._ping())
                self._beside.add(task)
                task.add_done_callback(self._beside.discard)
            raise
        except ValidationError as error:
            raise HostFault(self._no_mcp(method, error)) from None
        except MCPError as error:
            raise await self._meaning(method, error) from None

    async def _ping(self) -> None:
        with contextlib.suppress(HostFault, McpError):
            try:
                async with asyncio.timeout(PING_SECONDS):
                    await self._request("ping", lambda session: session.send_ping())
            except TimeoutError:
                self._over(f"{self.where} did not answer a ping within {PING_SECONDS:g} s")
                await self.close()

    async def _meaning(self, method: str, error: "MCPError") -> Exception:
        """Tell an error of the server from what the client says of the transport in the same form."""
        from mcp_types import CONNECTION_CLOSED, PARSE_ERROR

        if sentence := fault_of(error.data):
            return HostFault(sentence)
        if error.code == PARSE_ERROR:
            return HostFault(f"{self.where} wrote what is no JSON-RPC: {error.message}")
        if error.code == CONNECTION_CLOSED and error.message.startswith("SSE stream"):
            return HostFault(f"{self.where} ended its reply to {method} without a result")
        if error.code == CONNECTION_CLOSED and error.message == "Connection closed":
            self._ending.set()
            if not self.gone:  # the owner finds out why
                await asyncio.wait({self._owner}, timeout=2 * END_SECONDS)
            return HostFault(self.gone or f"{self.where} died")
        return McpError(error.code, error.message)

    def _over(self, sentence: str) -> None:
        """Let the connection end. The first sentence stands."""
        self.gone = self.gone or sentence
        self._ending.set()

    def _why(self, error: BaseException) -> str:
        """Say why the connection did not begin, or broke off."""
        from mcp import MCPError

        match _first(error):
            case HostFault() as error:
                return str(error)
            case MCPError() as error:
                refused = McpError(error.code, error.message)
                return fault_of(error.data) or f"{self.where} refuses to start: {refused}"
            case ValidationError() as error:
                return self._no_mcp("initialize", error)
            case asyncio.CancelledError():
                return f"{self.where} was ended"
            case error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                return f"{self.where} does not answer: {reason}"

    def _no_mcp(self, method: str, error: ValidationError) -> str:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{self.where} wrote what is no MCP: {method}: {place}: {first['msg']}"


def _first(error: BaseException) -> BaseException:
    """Unwrap what the client's task groups raise."""
    if isinstance(error, BaseExceptionGroup):
        return _first(cast(BaseExceptionGroup[BaseException], error).exceptions[0])
    return error


class StdioConnection(Connection):
    """A server that is a process of ours."""

    process: asyncio.subprocess.Process

    def __init__(
        self, name: str, command: tuple[str, ...], environment: dict[str, str], folder: str = ""
    ) -> None:
        """folder: where it runs; ours, unless given."""
        self.command = command
        self.folder = folder or None
        self.environment = environment
        super().__init__(f"MCP server {name!r} ({' '.join(command)})")

    @asynccontextmanager
    async def _transport(self) -> AsyncGenerator[tuple[PipeReader, PipeWriter]]:
        kept = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        pipe = asyncio.subprocess.PIPE
        try:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=pipe,
                stdout=pipe,
                env={**kept, **self.environment},
                cwd=self.folder,
                limit=LONGEST_LINE,
                start_new_session=True,
            )
        except OSError as error:
            raise HostFault(f"{self.where} cannot be started: {error.strerror}") from None
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            yield PipeReader(self.process.stdout, self._output_over), PipeWriter(self.process.stdin)
            # The server sees its input end; one that goes on is killed.
            self.process.stdin.close()
            status = await self._ended()
            self.gone = self.gone or f"{self.where} died (exit status {status})"
        finally:
            if self.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                await self._ended()

    def _output_over(self, garbage: str) -> None:
        if garbage:
            self._over(f"{self.where} wrote what is no JSON-RPC: {garbage}")
        self._ending.set()

    async def _ended(self) -> int | str:
        try:
            async with asyncio.timeout(END_SECONDS):
                return await self.process.wait()
        except TimeoutError:
            return "none yet"


class HttpConnection(Connection):
    """A server at a URL, by streamable HTTP."""

    def __init__(self, name: str, url: str, headers: dict[str, str]) -> None:
        self.url = url
        self.headers = headers
        super().__init__(f"MCP server {name!r} ({url})")

    @asynccontextmanager
    async def _transport(self) -> "AsyncGenerator[TransportStreams]":
        from mcp.client.streamable_http import streamable_http_client

        async with (
            http_client(self.where, self.url, self.headers, self._over) as client,
            streamable_http_client(
                self.url, http_client=client, max_sse_event_size=LONGEST_LINE
            ) as streams,
        ):
            yield streams
