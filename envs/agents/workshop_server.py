"""A server of workshops: episodes of other machines run their agents here (`dorado sandbox serve`).

Consumes websockets (`remote_wire`), each of which is one workshop. An agent's way to the policy goes back
over a further websocket, which the client opens: nothing here has to reach the gateway. A websocket that
ends, or does not answer for `ALIVE_SECONDS`, ends its workshop. Refuses whoever lacks the token.
"""

import asyncio
import contextlib
import hmac
import secrets
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import WSMsgType, web

from envs.agents.access import ModelAccess
from envs.agents.archive import unpack
from envs.agents.provider import misfit, workshop
from envs.agents.remote_wire import (
    ACT,
    ALIVE_SECONDS,
    CONNECTION,
    MOST_BYTES,
    SESSION,
    Answer,
    Connect,
    Greeting,
    Judge,
    Open,
    Opened,
    Put,
    Read,
    Run,
    carry,
    failed,
    plan_of,
)
from envs.agents.workshop import Ended, Workshop
from envs.session import HostFault
from envs.text import told

# Until the client has opened the connection that an agent wants.
_CONNECT_SECONDS = 30.0


@dataclass
class _Session:
    """One workshop of a client."""

    socket: web.WebSocketResponse
    folder: Path
    shop: Workshop | None = None
    asking: dict[str, "_Asking"] = field(default_factory=dict[str, "_Asking"])


@dataclass
class _Asking:
    """A connection of an agent, which the client has to take to the policy."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class WorkshopServer:
    """Serves workshops of one sandbox of this machine, so many at once; more wait."""

    def __init__(self, sandbox: str, *, token: str = "", most: int = 64) -> None:
        """token: what clients have to show; "" lets everybody in who reaches the address."""
        self.sandbox = sandbox
        self.token = token
        self.sessions: dict[str, _Session] = {}
        self._places = asyncio.Semaphore(most)

    def application(self) -> web.Application:
        """The application to serve."""
        app = web.Application()
        app.router.add_get(SESSION, self._session)
        app.router.add_get(CONNECTION, self._connection)
        app.on_shutdown.append(self._close)
        return app

    def _allowed(self, request: web.Request) -> None:
        shown = request.headers.get("Authorization", "")
        if self.token and not hmac.compare_digest(shown.encode(), f"Bearer {self.token}".encode()):
            raise web.HTTPUnauthorized(text="another token, or none")

    async def _session(self, request: web.Request) -> web.WebSocketResponse:
        self._allowed(request)
        socket = web.WebSocketResponse(heartbeat=ALIVE_SECONDS, max_msg_size=MOST_BYTES)
        await socket.prepare(request)
        key = secrets.token_urlsafe(16)
        folder = Path(tempfile.mkdtemp(prefix="dorado-scripts-"))
        session = self.sessions[key] = _Session(socket, folder)
        try:
            greeting = Greeting(session=key)
            await socket.send_str(greeting.model_dump_json())
            async with self._places:
                await self._serve(session)
        finally:
            del self.sessions[key]
            shutil.rmtree(folder, ignore_errors=True)
        return socket

    async def _serve(self, session: _Session) -> None:
        """Answer acts, one at a time; unblocked by the end of the websocket, which ends what still runs."""
        acting: asyncio.Task[None] | None = None
        try:
            async for message in session.socket:
                if message.type is not WSMsgType.TEXT or (acting and not acting.done()):
                    break
                acting = asyncio.create_task(self._answer(session, message.data))
        finally:
            if acting is not None:
                acting.cancel()
                await asyncio.wait({acting})
            if session.shop is not None:
                with contextlib.suppress(HostFault):
                    await session.shop.remove()

    async def _close(self, app: web.Application) -> None:
        for session in tuple(self.sessions.values()):
            await session.socket.close()

    async def _answer(self, session: _Session, text: str) -> None:
        """Do one act, and answer it."""
        try:
            answer = await self._act(session, text)
        except (ValueError, RuntimeError, OSError, TimeoutError, HostFault) as error:
            answer = Answer(failed=failed(error, told(error)))
        with contextlib.suppress(ConnectionError):
            await session.socket.send_str(answer.model_dump_json())

    async def _act(self, session: _Session, text: str) -> Answer:
        act, shop = ACT.validate_json(text), session.shop
        if isinstance(act, Open):
            return Answer(opened=await self._open(session, act))
        if shop is None:
            raise ValueError("the workshop is not open")
        match act:
            case Put():
                await shop.put(act.archive)
                return Answer()
            case Read():
                return Answer(text=await shop.read(act.name, act.most))
            case Run():
                return Answer(ended=await self._run(session, shop, act))
            case Judge():
                folder = session.folder / "tests"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                unpack(act.archive, folder)
                script = folder / Path(act.script).name
                return Answer(verdict=await shop.judge(script, act.variables))

    async def _open(self, session: _Session, act: Open) -> Opened:
        plan, scripts = plan_of(act, self.sandbox, session.folder)
        if wrong := misfit(plan.sandbox, plan.container, builds=bool(plan.context)):
            raise ValueError(wrong)
        session.shop = shop = workshop(plan)
        await shop.open()
        at = {name: shop.at(path) for name, path in scripts.items()}
        return Opened(python=shop.python, scripts=at)

    async def _run(self, session: _Session, shop: Workshop, act: Run) -> Ended:
        async with contextlib.AsyncExitStack() as held:
            access = None
            if act.key is not None:
                gate = await held.enter_async_context(await self._gate(session))
                port = gate.sockets[0].getsockname()[1]
                access = ModelAccess(f"http://127.0.0.1:{port}", act.key, act.model)
            return await shop.run(
                act.argv,
                access=access,
                variables=act.variables,
                stdin=act.stdin,
                seconds=act.seconds,
            )

    async def _gate(self, session: _Session) -> asyncio.Server:
        """Serve a port as the gateway: each connection is one that the client opens."""

        async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            number = secrets.token_urlsafe(8)
            asking = session.asking[number] = _Asking(reader, writer)
            try:
                await session.socket.send_str(Connect(connect=number).model_dump_json())
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await asking.answered.wait()
                await asking.over.wait()
            except (OSError, TimeoutError):
                writer.transport.abort()
            finally:
                session.asking.pop(number, None)
                writer.close()

        return await asyncio.start_server(taken, "127.0.0.1", 0, backlog=256)

    async def _connection(self, request: web.Request) -> web.WebSocketResponse:
        self._allowed(request)
        session = self.sessions.get(request.match_info["session"])
        asking = session.asking.pop(request.match_info["connection"], None) if session else None
        if asking is None:
            raise web.HTTPNotFound(text="nobody asks for this connection")
        asking.answered.set()
        try:
            socket = web.WebSocketResponse(heartbeat=ALIVE_SECONDS, max_msg_size=MOST_BYTES)
            await socket.prepare(request)
            await carry(asking.reader, asking.writer, socket)
        finally:
            asking.over.set()
        return socket
