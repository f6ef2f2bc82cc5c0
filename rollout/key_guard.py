"""Asks for the key on every path of vLLM's server but its health: vLLM itself guards `/v1` alone.

The routes for sleep come with others for development, which let whoever can reach the port call what they
like in the engine. Runs in the server's process, which is told its name (`--middleware`).
"""

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
NAME = f"{__name__}.KeyGuard"
OPEN = "/health"


class KeyGuard:
    """ASGI middleware."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.wanted = f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        headers = dict(scope.get("headers", ()))
        given = headers.get(b"authorization", b"")
        if (
            scope["type"] == "lifespan"
            or scope["path"] == OPEN
            or hmac.compare_digest(given, self.wanted)
        ):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            head = {"type": "http.response.start", "status": 401}
            await send(head | {"headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
