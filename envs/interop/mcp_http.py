"""HTTP for an MCP client, with failures of the transport told apart from errors of the server.

The client passes both on as JSON-RPC errors. Here a reply that is a failure becomes a JSON-RPC error that
says so in its data (`fault_of`), whatever else the server wrote in it.
"""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Request, Response

_FAULT = "dorado fault"
_NO_HTTP_STATUS = 599


def fault_of(data: object) -> str:
    """Return the sentence of a transport's failure, from the data of a JSON-RPC error; "" where it has
    none."""
    return str(cast(dict[str, object], data).get(_FAULT, "")) if isinstance(data, dict) else ""


def http_client(
    where: str, url: str, headers: dict[str, str], lost: Callable[[str], None]
) -> "AsyncClient":
    """Make the HTTP client for the server `where`. lost: called where the server has lost the session."""
    import httpx2

    class Client(httpx2.AsyncClient):
        async def send(self, request: "Request", **options: Any) -> "Response":
            try:
                response = await super().send(request, **options)
            except httpx2.HTTPError as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                return failed(request, f"{where} does not answer: {reason}")
            wrong = _wrong(request, response) if request.method == "POST" else ""
            if not wrong:
                return response
            await response.aclose()
            if response.status_code == 404 and "mcp-session-id" in request.headers:
                wrong = "has lost the session"
                lost(f"{where} {wrong}")
            return failed(request, f"{where} {wrong}")

    def failed(request: "Request", sentence: str) -> "Response":
        error = {"code": 0, "message": sentence, "data": {_FAULT: sentence}}
        body = {"jsonrpc": "2.0", "id": None, "error": error}
        return httpx2.Response(_NO_HTTP_STATUS, request=request, json=body)

    # How long a call may take is its asker's affair. Plain HTTP needs no certificates.
    return Client(headers=headers, timeout=None, verify=url.startswith("https"))


def _wrong(request: "Request", response: "Response") -> str:
    """Say why a reply to a message carries no answer to it; "" where it may."""
    if not response.is_success:
        return f"gave HTTP {response.status_code}"
    message = json.loads(request.content)
    if "id" not in message or "method" not in message:
        return ""
    if response.status_code == 202:
        return f"ended its reply to {message['method']} without a result"
    kind = response.headers.get("content-type", "").lower()
    if not kind.startswith(("application/json", "text/event-stream")):
        return f"wrote what is no JSON-RPC: content of type {kind!r}"
    return ""
