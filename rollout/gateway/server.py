"""`Gateway`: the HTTP server of one process, in front of the episodes (`Talk`) that agents play there.

Consumes requests of OpenAI's and Anthropic's APIs, each with its episode's secret as the API key. Produces
their answers and their errors. It knows no tokens. A stream is the whole answer in the API's events, once it
is there: until then the connection is kept alive. It binds one address and no name; there is no TLS.
"""

import asyncio
import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError

from envs.agents.access import ModelAccess
from envs.message import JsonObject
from envs.text import told
from rollout.gateway import anthropic_messages, chat_completions, responses
from rollout.gateway.api_error import ApiError
from rollout.gateway.body import key_of, parsed, text_of
from rollout.gateway.exchange import Answer, Ask
from rollout.gateway.talk import Talk

MOST_BYTES = 8 * 2**20
# So long a stream is silent at first, so that an early error has its own status; then it says that it lives.
ALIVE_SECONDS = 15.0
# Until the body of a request is there.
READ_SECONDS = 60.0

Events = list[tuple[str, str]]


@dataclass(frozen=True)
class Dialect:
    """One API: how it reads a request and writes an answer, its events (name, data), an error."""

    read: Callable[[JsonObject, str], Ask]
    written: Callable[[Answer], JsonObject]
    events: Callable[[Answer, JsonObject], Events]
    error: Callable[[ApiError], JsonObject]


def _chat_events(answer: Answer, body: JsonObject) -> Events:
    options = body.get("stream_options")
    usage = bool(isinstance(options, dict) and options.get("include_usage"))
    return [("", data) for data in chat_completions.streamed(answer, usage=usage)]


CHAT = Dialect(
    chat_completions.read, chat_completions.written, _chat_events, chat_completions.error
)
RESPONSES = Dialect(
    responses.read,
    responses.written,
    lambda answer, _: list(responses.streamed(answer)),
    chat_completions.error,
)
MESSAGES = Dialect(
    anthropic_messages.read,
    anthropic_messages.written,
    lambda answer, _: list(anthropic_messages.streamed(answer)),
    anthropic_messages.error,
)
_PATHS = {"/chat/completions": CHAT, "/responses": RESPONSES, "/messages": MESSAGES}


class Gateway:
    """Serves the talks that are open."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        """host: the address to bind: the loopback, or one that the agents' machines reach."""
        self.host = host
        self.talks: dict[bytes, Talk] = {}
        self._keys: dict[str, bytes] = {}
        self._port: int | None = None
        self._runner: web.AppRunner | None = None
        self._starting = asyncio.Lock()

    async def open(self, talk: Talk) -> ModelAccess:
        """Serve an episode from now on; the server starts with the first. Raises OSError."""
        async with self._starting:
            if self._port is None:
                await self._start()
        key = f"sk-{secrets.token_urlsafe(32)}"
        self._keys[talk.id] = digest = _digest(key)
        self.talks[digest] = talk
        host = f"[{self.host}]" if ":" in self.host else self.host
        limits = talk.config.max_turns, talk.config.max_tokens
        return ModelAccess(f"http://{host}:{self._port}", key, talk.model, *limits)

    async def shut(self, talk: Talk) -> None:
        """Serve an episode no more."""
        self.talks.pop(self._keys.pop(talk.id, b""), None)
        await talk.close()

    async def stop(self) -> None:
        """End the server, and every request."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = self._port = None

    async def _start(self) -> None:
        app = web.Application(client_max_size=MOST_BYTES)
        for prefix in ("/v1", ""):
            for path, dialect in _PATHS.items():
                app.router.add_post(f"{prefix}{path}", _handler(self._answer, dialect))
            counting = _handler(self._count, MESSAGES)
            app.router.add_post(f"{prefix}/messages/count_tokens", counting)
            app.router.add_get(f"{prefix}/models", _handler(self._models, CHAT))
            app.router.add_get(f"{prefix}/models/{{name}}", _handler(self._models, CHAT))
        app.router.add_route("*", "/{path:.*}", _handler(_nowhere, CHAT))
        # An agent's process is ended with its episode: no request is worth waiting for at the end.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, 0, backlog=4096)
        await site.start()
        self._port = self._runner.addresses[0][1]

    def _talk(self, request: web.Request) -> Talk:
        """The episode whose secret a request brings, in whichever of its headers. Raises ApiError."""
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        keys = (bearer if scheme.lower() == "bearer" else "", request.headers.get("x-api-key", ""))
        for key in keys:
            if (talk := self.talks.get(_digest(key.strip()))) is not None:
                return talk
        raise ApiError(
            "secret", "Incorrect API key provided: it is not that of an episode in progress."
        )

    async def _answer(self, request: web.Request, dialect: Dialect) -> web.StreamResponse:
        talk = self._talk(request)
        body = parsed(await _read(request))
        _known(talk, text_of(body, "model"))
        stream = body.get("stream") is True
        key = _key(request, body)
        answering = asyncio.ensure_future(talk.answer(_asked(dialect, body, key)))
        # A client that goes away in a stream leaves nobody who hears of its failure.
        answering.add_done_callback(lambda done: done.cancelled() or done.exception())
        if not stream:
            return _json(dialect.written(await answering), answer=True)
        return await _streamed(request, dialect, body, answering)

    async def _count(self, request: web.Request, dialect: Dialect) -> web.StreamResponse:
        talk = self._talk(request)
        body = parsed(await _read(request))
        _known(talk, text_of(body, "model"))
        ask = _asked(dialect, {"max_tokens": 1, **body}, "")
        return _json({"input_tokens": await talk.count(ask)}, answer=True)

    async def _models(self, request: web.Request, _: Dialect) -> web.StreamResponse:
        talk = self._talk(request)
        one = {"id": talk.model, "object": "model", "created": 0, "owned_by": "dorado"}
        if "name" in request.match_info:
            _known(talk, request.match_info["name"])
            return _json(one)
        return _json({"object": "list", "data": [one], "has_more": False})


async def _streamed(
    request: web.Request, dialect: Dialect, body: JsonObject, answering: asyncio.Future[Answer]
) -> web.StreamResponse:
    """The answer as server-sent events. Raises ApiError where none has been sent yet."""
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    )
    while not (await asyncio.wait({answering}, timeout=ALIVE_SECONDS))[0]:
        if not response.prepared:
            await response.prepare(request)
        await response.write(b": alive\n\n")
    if not response.prepared:
        answer = await answering
        await response.prepare(request)
        events = dialect.events(answer, body)
    else:
        try:
            events = dialect.events(await answering, body)
        except Exception as error:  # too late for a status
            failure = error if isinstance(error, ApiError) else _failed(error)
            events = [("error", json.dumps(dialect.error(failure)))]
    lines = [
        f"event: {name}\ndata: {data}\n\n" if name else f"data: {data}\n\n" for name, data in events
    ]
    await response.write("".join(lines).encode())
    await response.write_eof()
    return response


def _handler(
    act: Callable[[web.Request, Dialect], Awaitable[web.StreamResponse]], dialect: Dialect
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The act, with each failure as an error of the API; a client that has gone away is none."""

    async def handle(request: web.Request) -> web.StreamResponse:
        anthropic = "anthropic-version" in request.headers or "/messages" in request.path
        spoken = MESSAGES if anthropic else dialect
        try:
            return await act(request, dialect)
        except ApiError as error:
            failure = error
        except ConnectionError:
            return web.Response(status=499)
        except web.HTTPException as error:
            failure = ApiError("invalid", error.reason)
        except Exception as error:
            failure = _failed(error)
        response = _json(spoken.error(failure), status=failure.status)
        if request.content.exception() is not None or not request.content.is_eof():
            response.force_close()  # what is left of the body would be read as the next request
        return response

    return handle


def _failed(error: Exception) -> ApiError:
    return ApiError("failed", f"the gateway failed: {told(error)}")


def _asked(dialect: Dialect, body: JsonObject, key: str) -> Ask:
    """The request that a body is. Raises ApiError, also for what no record can hold."""
    try:
        return dialect.read(body, key)
    except (TypeError, ValueError, RecursionError) as error:
        raise ApiError("invalid", f"the request cannot be read: {told(error)}") from None


def _key(request: web.Request, body: JsonObject) -> str:
    """Equal for requests that ask the same. Raises ApiError."""
    try:
        return key_of(request.path, body, request.headers.get("Idempotency-Key", ""))
    except RecursionError:
        raise ApiError("invalid", "the body of a request nests too deeply") from None


async def _nowhere(request: web.Request, _: Dialect) -> web.StreamResponse:
    raise ApiError("path", f"Invalid URL ({request.method} {request.path})")


async def _read(request: web.Request) -> bytes:
    """The body. Raises ApiError."""
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await request.read()
    except TimeoutError:
        raise ApiError(
            "slow", f"the request's body did not come within {READ_SECONDS:g} s"
        ) from None
    except (web.RequestPayloadError, ContentEncodingError) as error:
        raise ApiError("invalid", f"the request's body cannot be read: {told(error)}") from None
    except web.HTTPRequestEntityTooLarge:
        raise ApiError(
            "too_large", f"Request exceeds the maximum size of {MOST_BYTES:,} bytes"
        ) from None


def _known(talk: Talk, name: str) -> None:
    """Raises ApiError for a model that there is not."""
    if name != talk.model:
        raise ApiError(
            "model",
            f"The model {name!r} does not exist: the policy is called {talk.model!r} here",
            "model",
        )


def _json(body: Any, *, status: int = 200, answer: bool = False) -> web.Response:
    # Clients that retry by themselves are told when that is of no use.
    headers = {} if answer or status == 429 else {"x-should-retry": "false"}
    return web.json_response(body, status=status, headers=headers)


def _digest(key: str) -> bytes:
    """The key as it is looked up: how long that takes says nothing of it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
