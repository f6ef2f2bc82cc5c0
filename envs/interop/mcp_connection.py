"""One connection to an MCP server, by JSON-RPC: over the pipes of a process, or over streamable HTTP.

In: requests, many at once. Out: their results. A server that ends, does not answer a ping, or writes what is
no JSON-RPC is HostFault, for everybody who waits for it; an error that it answers with is McpError.

Leaves out: resources, prompts, sampling, roots (a server that asks for them is told so), and resuming a
broken HTTP stream.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from envs.interop.lazy import imported
from envs.session import HostFault

PROTOCOL = "2025-06-18"
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
    """What both transports share: ids, the introduction, and finding out whether a server is still there."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.gone = ""
        self.server: dict[str, str] = {}
        self.ids = itertools.count(1)
        self.beside: set[asyncio.Task[None]] = set()

    async def introduce(self) -> None:
        """The first exchange. Raises HostFault where there is none within START_SECONDS."""
        about = {"name": "dorado", "version": "1"}
        wanted = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": about}
        try:
            async with asyncio.timeout(START_SECONDS):
                result = await self.request("initialize", wanted)
                await self.introduced(str(result.get("protocolVersion", PROTOCOL)))
                await self.notify("notifications/initialized", {})
        except TimeoutError:
            raise HostFault(f"{self.where} did not start within {START_SECONDS:g} s") from None
        except McpError as error:
            raise HostFault(f"{self.where} refuses to start: {error}") from None
        self.server = {k: str(v) for k, v in (result.get("serverInfo") or {}).items()}

    async def introduced(self, protocol: str) -> None:  # noqa: B027 - one transport has nothing to do
        """The version of the protocol is agreed on."""

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The result of a request. Raises McpError, HostFault.

        Where the asker stops waiting, a ping finds out whether the server is still there; a server that does
        not answer it is ended, so that nobody else waits for it.
        """
        if self.gone:
            raise HostFault(self.gone)
        id = next(self.ids)
        message = {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
        try:
            answer = await self._exchange(id, message)
        except asyncio.CancelledError:
            if method != "ping":
                self._aside(self._still_there(id))
            raise
        if "error" in answer:
            error = answer["error"] if isinstance(answer["error"], dict) else {}
            raise McpError(int(error.get("code", 0)), str(error.get("message", answer["error"])))
        result = answer.get("result")
        return result if isinstance(result, dict) else {}

    async def notify(self, method: str, params: dict[str, Any]) -> None:
        """Say something that needs no answer."""
        await self._send({"jsonrpc": "2.0", "method": method, "params": params})

    @abstractmethod
    async def close(self) -> None:
        """End the connection."""

    @abstractmethod
    async def _exchange(self, id: int, message: dict[str, Any]) -> dict[str, Any]:
        """Send a request, and wait for its answer."""

    @abstractmethod
    async def _send(self, message: dict[str, Any]) -> None:
        """Send what needs no answer."""

    def _aside(self, act: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(act)
        self.beside.add(task)
        task.add_done_callback(self.beside.discard)

    async def _still_there(self, id: int) -> None:
        with contextlib.suppress(HostFault, McpError):
            try:
                async with asyncio.timeout(PING_SECONDS):
                    await self.notify("notifications/cancelled", {"requestId": id})
                    await self.request("ping", {})
            except TimeoutError:
                self.gone = f"{self.where} did not answer a ping within {PING_SECONDS:g} s"
                await self.close()


class StdioConnection(Connection):
    """A server that is a process of ours."""

    def __init__(self, where: str, process: asyncio.subprocess.Process) -> None:
        super().__init__(where)
        self.process = process
        self.waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.reader = asyncio.create_task(self._read())

    @classmethod
    async def open(
        cls, name: str, command: tuple[str, ...], environment: dict[str, str]
    ) -> "StdioConnection":
        """Start the server. Raises HostFault."""
        where = f"MCP server {name!r} ({' '.join(command)})"
        kept = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=pipe,
                stdout=pipe,
                env={**kept, **environment},
                limit=LONGEST_LINE,
                start_new_session=True,
            )
        except OSError as error:
            raise HostFault(f"{where} cannot be started: {error.strerror}") from None
        return cls(where, process)

    async def _exchange(self, id: int, message: dict[str, Any]) -> dict[str, Any]:
        self.waiting[id] = asyncio.get_running_loop().create_future()
        try:
            await self._send(message)
            return await self.waiting[id]
        finally:
            del self.waiting[id]

    async def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            await self.process.stdin.drain()
        except OSError:
            raise HostFault(self.gone or f"{self.where} died") from None

    async def _read(self) -> None:
        """Consumes: the server's lines. Produces: the results that requests wait for. Waits for: a line.
        Unblocked by: the server, or its end; then everybody who waits gets HostFault.
        """
        assert self.process.stdout is not None
        try:
            while line := await self.process.stdout.readline():
                await self._take(json.loads(line))
            self.gone = self.gone or f"{self.where} died (exit status {await self._ended()})"
        except (ValueError, TypeError, AttributeError, HostFault) as error:
            self.gone = self.gone or f"{self.where} wrote what is no JSON-RPC: {error}"
        finally:
            self.gone = self.gone or f"{self.where} was ended"
            self._kill()
            for future in self.waiting.values():
                if not future.done():
                    future.set_exception(HostFault(self.gone))
            await self._ended()

    async def _ended(self) -> int | str:
        try:
            async with asyncio.timeout(END_SECONDS):
                return await self.process.wait()
        except TimeoutError:
            return "none yet"

    async def _take(self, message: dict[str, Any]) -> None:
        id, method = message.get("id"), message.get("method")
        if method is None:
            future = self.waiting.get(id) if isinstance(id, int) else None
            if future is not None and not future.done():
                future.set_result(message)
        elif id is not None:
            answer = {"result": {}} if method == "ping" else {"error": _NOT_OFFERED}
            await self._send({"jsonrpc": "2.0", "id": id, **answer})

    async def close(self) -> None:
        """The server sees its input end; one that goes on is killed."""
        self.gone = self.gone or f"{self.where} was ended"
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            await self._ended()
        finally:  # also where nobody waits for it any more
            self._kill()
            self.reader.cancel()

    def _kill(self) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


class HttpConnection(Connection):
    """A server at a URL, by streamable HTTP."""

    def __init__(self, name: str, url: str, headers: dict[str, str]) -> None:
        super().__init__(f"MCP server {name!r} ({url})")
        self.url = url
        accept = {"Accept": "application/json, text/event-stream"}
        httpx = imported("httpx", "MCP")
        self.failure: type[Exception] = httpx.HTTPError
        # How long a call may take is its asker's affair. Plain HTTP needs no certificates.
        self.client = httpx.AsyncClient(
            headers={**headers, **accept}, timeout=None, verify=url.startswith("https")
        )

    async def introduced(self, protocol: str) -> None:
        self.client.headers["MCP-Protocol-Version"] = protocol

    async def _send(self, message: dict[str, Any]) -> None:
        await self._post(message, None)

    async def _exchange(self, id: int, message: dict[str, Any]) -> dict[str, Any]:
        answer = await self._post(message, id)
        if answer is None:
            raise HostFault(f"{self.where} ended its reply to {message['method']} without a result")
        return answer

    async def _post(self, message: dict[str, Any], id: int | None) -> dict[str, Any] | None:
        """Post a message; the answer with that id, where one is asked for."""
        try:
            async with self.client.stream("POST", self.url, json=message) as response:
                if session := response.headers.get("mcp-session-id"):
                    self.client.headers["Mcp-Session-Id"] = session
                if response.status_code == 404 and "Mcp-Session-Id" in self.client.headers:
                    self.gone = f"{self.where} has lost the session"
                if not response.is_success:
                    raise HostFault(self.gone or f"{self.where}: HTTP {response.status_code}")
                if id is None:
                    return None
                async for text in _messages(response):
                    found = json.loads(text)
                    if found.get("id") == id and "method" not in found:
                        return found
        except self.failure as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise HostFault(f"{self.where} does not answer: {reason}") from None
        except (ValueError, AttributeError) as error:
            raise HostFault(f"{self.where} wrote what is no JSON-RPC: {error}") from None
        return None

    async def close(self) -> None:
        """End the session; a server that does not care has ended it or will."""
        self.gone = self.gone or f"{self.where}: the session was ended"
        if "Mcp-Session-Id" in self.client.headers:
            with contextlib.suppress(self.failure, TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await self.client.delete(self.url)
        await self.client.aclose()


async def _messages(response: Any) -> AsyncIterator[str]:
    """The JSON texts of a reply: one, or those of a stream of events."""
    if "text/event-stream" not in response.headers.get("content-type", ""):
        yield (await response.aread()).decode()
        return
    data: list[str] = []
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data.clear()


_NOT_OFFERED = {"code": -32601, "message": "this client only calls tools"}
