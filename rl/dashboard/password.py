"""A password before everything: `dorado dashboard --password-file`, needed where other machines can connect.

Who gives it gets a cookie that this process knows; it is good until the process ends. No user names, no
rights: whoever has the password sees all runs. There is no encryption here: over a network that others can
listen to, put a server with TLS in front.
"""

import asyncio
import html
import os
import secrets
from pathlib import Path
from urllib.parse import parse_qs, urlencode

from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rl.config_file import ConfigError

VARIABLE = "DORADO_DASHBOARD_PASSWORD"
_FEWEST = 8
# Of one wrong password; meanwhile no other is looked at.
_WRONG_SECONDS = 1.0
_MOST_BYTES = 4096
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Dorado</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark; }}
body {{ font-family: system-ui, sans-serif; display: grid; place-items: center; min-height: 90vh; }}
form {{ display: grid; gap: 12px; width: 280px; }}
input, button {{ font: inherit; padding: 8px; }}
</style></head>
<body><form method="post" action="/login?{query}">
<strong>Dorado</strong>
<label for="password">{said}</label>
<input id="password" name="password" type="password" autocomplete="current-password" autofocus required>
<button>Show the runs</button>
</form></body></html>
"""


def read_password(file: Path | None) -> str | None:
    """The password of the file's first line, or of the environment; None without. Raises ConfigError."""
    if file is None:
        where, found = VARIABLE, os.environ.get(VARIABLE)
    else:
        where = f"--password-file {file}"
        try:
            found = (file.read_text(encoding="utf-8").splitlines() or [""])[0].strip()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{where}: cannot be read: {error}") from None
    if found is not None and len(found) < _FEWEST:
        raise ConfigError(f"{where}: the password has to have {_FEWEST} characters or more")
    return found


class AskPassword:
    """Lets nothing through, neither pages nor their live connections, without the password's cookie."""

    def __init__(self, app: ASGIApp, password: str) -> None:
        self.app = app
        self.password = password
        self.session = secrets.token_urlsafe(32)
        self.wrong = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._known(HTTPConnection(scope)):
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 4401})
        request = Request(scope, receive)
        if request.url.path == "/login" and request.method == "POST":
            answer = await self._login(request)
        else:
            query = f"?{request.url.query}" if request.url.query else ""
            answer = _form("password", request.url.path + query, 401)
        await answer(scope, receive, send)

    def _cookie(self, request: HTTPConnection) -> str:
        """Its name: a cookie is of a host, and on one host several dashboards may serve."""
        return f"dorado_{request.url.port or 80}"

    def _known(self, request: HTTPConnection) -> bool:
        found = request.cookies.get(self._cookie(request), "")
        return secrets.compare_digest(found.encode(), self.session.encode())

    async def _login(self, request: Request) -> Response:
        target = request.query_params.get("next", "/")
        if not target.startswith("/") or target.startswith(("//", "/\\")):
            target = "/"  # somebody else's link must not lead away from here
        given = await _given(request)
        async with self.wrong:
            if not secrets.compare_digest(given.encode(), self.password.encode()):
                await asyncio.sleep(_WRONG_SECONDS)
                return _form("that was not the password", target, 403)
        answer = RedirectResponse(target, 303)
        answer.set_cookie(self._cookie(request), self.session, httponly=True, samesite="strict")
        return answer


async def _given(request: Request) -> str:
    """The password that the form holds, "" for what is no form of ours."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            return ""
    return parse_qs(body.decode(errors="replace")).get("password", [""])[0]


def _form(said: str, target: str, status: int) -> Response:
    query = html.escape(urlencode({"next": target}))
    page = _PAGE.format(said=html.escape(said), query=query)
    headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return HTMLResponse(page, status, headers)
