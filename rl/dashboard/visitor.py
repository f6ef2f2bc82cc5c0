"""Requests of other web pages, refused: the dashboard answers its own pages, and links that a person follows.

A browser lets any page ask any address, this machine's too. So a request has to name this dashboard (`Host`:
a name of somebody else's that points here is refused), must not come from another page (`Origin`,
`Sec-Fetch-Site`; a link that a person follows may), and no page can hold an answer in a frame of its own.
"""

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::\d{1,5})?")
_POLICY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_CONTENT = "frame-ancestors 'none'; object-src 'none'; base-uri 'self'; form-action 'self'"


class OwnPagesOnly:
    """Refuses requests of other pages, HTTP and WebSocket alike, and sends the policies with every answer.

    hosts: names that a request may be for; empty: any, where something else says who may ask.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        status, why = refusal(Headers(scope=scope), self.hosts)
        if not why:
            return await self.app(scope, receive, _with_policy(send))
        if scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 4403, "reason": why})
        await PlainTextResponse(f"{why}\n", status)(scope, receive, _with_policy(send))


def refusal(headers: Headers, hosts: frozenset[str]) -> tuple[int, str]:
    """The status and the sentence with which a request is refused; (200, "") where it is not."""
    named = headers.getlist("host")
    host = _HOST.fullmatch(named[0]) if len(named) == 1 else None
    if host is None or (hosts and host[1].lower() not in hosts):
        return 400, f"this dashboard is at {', '.join(sorted(hosts)) or 'another name'}; open that"
    if any(
        origin.partition("://")[2].lower() != host[0].lower()
        for origin in headers.getlist("origin")
    ):
        return 403, "another page asked; open the dashboard by its own address"
    if headers.get("sec-fetch-site", "none") in ("same-origin", "none"):
        return 200, ""
    followed = (
        headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    )
    return (
        (200, "")
        if followed
        else (403, "another page asked; open the dashboard by its own address")
    )


def _with_policy(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _POLICY.items():
                headers[name] = value
            headers.append("content-security-policy", _CONTENT)
        await send(message)

    return sent
