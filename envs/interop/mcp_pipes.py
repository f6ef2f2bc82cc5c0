"""The pipes of an MCP server that is a process of ours, as the two streams that the client reads and
writes."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from mcp.shared.message import SessionMessage


class _Stream:
    async def aclose(self) -> None:
        """Do nothing: the pipes are closed with their process."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.aclose()


class PipeReader(_Stream):
    """Reads one JSON-RPC message a line.

    over: called once at the end, with what the server wrote that is no message ("": its output ended).
    """

    def __init__(self, stream: asyncio.StreamReader, over: Callable[[str], None]) -> None:
        self._stream = stream
        self._over = over

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> "SessionMessage":
        from mcp.shared.message import SessionMessage
        from mcp_types import jsonrpc_message_adapter

        line = b""
        try:
            line = await self._stream.readline()
            if line:
                return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
            self._over("")
        except ValueError as error:
            self._over(repr(line[:80]) if line else str(error))
        raise StopAsyncIteration

    async def receive(self) -> "SessionMessage":
        """Return the next message. Raises anyio.EndOfStream."""
        from anyio import EndOfStream

        try:
            return await anext(self)
        except StopAsyncIteration:
            raise EndOfStream from None


class PipeWriter(_Stream):
    """Writes one JSON-RPC message a line."""

    def __init__(self, stream: asyncio.StreamWriter) -> None:
        self._stream = stream

    async def send(self, item: "SessionMessage", /) -> None:
        """Write a message. Raises anyio.BrokenResourceError where nobody reads any more."""
        from anyio import BrokenResourceError
        from mcp_types import JSONRPCRequest

        line = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        try:
            self._stream.write(line.encode() + b"\n")
            # Only who waits for an answer waits for a slow reader: not who takes a request back.
            if isinstance(item.message, JSONRPCRequest):
                await self._stream.drain()
        except OSError:
            raise BrokenResourceError from None
