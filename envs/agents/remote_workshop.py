"""`RemoteWorkshop`: a workspace on another machine, where `dorado sandbox serve` runs.

Flows in and out: the acts of a `Workshop`, over one websocket that lives as long as it does (`remote_wire`).
When an agent there asks for the policy, a further websocket is opened from here and joined with the gateway,
which can so stay on the loopback. A server that is lost is a fault of the host.
"""

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from envs.agents.access import ModelAccess
from envs.agents.archive import archive_folder
from envs.agents.remote_wire import (
    ALIVE_SECONDS,
    CONNECTION,
    MOST_BYTES,
    SAID,
    SESSION,
    TOKEN_VARIABLE,
    Answer,
    Connect,
    Greeting,
    Judge,
    Open,
    Put,
    Read,
    Run,
    carry,
)
from envs.agents.workshop import Ended, Plan, Verdict
from envs.session import HostFault
from envs.text import told

if TYPE_CHECKING:
    from aiohttp import ClientSession, ClientWebSocketResponse

# Until the server has answered that it is there.
_CONNECT_SECONDS = 30.0


def obstacle(address: str) -> str:
    """Why no episode can have its workshop there, in a sentence; "" where it can."""
    with ThreadPoolExecutor(1) as pool:  # here a loop may be running
        return pool.submit(asyncio.run, _obstacle(address)).result()


async def _obstacle(address: str) -> str:
    shop = RemoteWorkshop(Plan(address))
    try:
        await shop.connect()
    except HostFault as error:
        return str(error)
    finally:
        await shop.remove()
    return ""


class RemoteWorkshop:
    """The workspace of one episode, on another machine."""

    def __init__(self, plan: Plan) -> None:
        """plan: its sandbox is the address of the server."""
        self.plan = plan
        self.address = plan.sandbox.rstrip("/")
        self.python = ""
        self._scripts: dict[str, str] = {}
        self._access: ModelAccess | None = None
        self._http: ClientSession | None = None
        self._socket: ClientWebSocketResponse | None = None
        self._session = ""
        self._answers: asyncio.Queue[Answer | None] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    def at(self, script: Path) -> str:
        return self._scripts[str(script)]

    async def connect(self) -> None:
        """Connect with the server. Raises HostFault."""
        import aiohttp

        token = os.environ.get(TOKEN_VARIABLE, "")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = aiohttp.ClientSession(headers=headers)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                self._socket = await self._opened(SESSION)
                greeting = Greeting.model_validate_json(await self._socket.receive_str())
            self._session = greeting.session
        except (aiohttp.ClientError, OSError, TimeoutError, TypeError, ValueError) as error:
            status = error.status if isinstance(error, aiohttp.WSServerHandshakeError) else 0
            why = f"it refuses the token in {TOKEN_VARIABLE}" if status == 401 else told(error)
            raise HostFault(f"no server of workshops answers at {self.address}: {why}") from None
        self._begin(self._listen(self._socket))

    async def open(self) -> None:
        await self.connect()
        # An image may have to be fetched or built there; the episode's deadline is the limit.
        opened = (await self._act(Open.of(self.plan))).opened
        assert opened is not None, "it opened"
        self.python, self._scripts = opened.python, opened.scripts

    async def put(self, archive: bytes) -> None:
        await self._act(Put(archive=archive))

    async def read(self, name: str, most: int = 1_000_000) -> str | None:
        return (await self._act(Read(name=name, most=most))).text

    async def run(
        self,
        argv: Sequence[str],
        *,
        access: ModelAccess | None = None,
        variables: Mapping[str, str] | None = None,
        stdin: str = "",
        seconds: float | None = None,
    ) -> Ended:
        self._access = access
        act = Run(
            argv=tuple(argv),
            variables=dict(variables or {}),
            stdin=stdin,
            seconds=seconds,
            key=access.key if access else None,
            model=access.model if access else "",
        )
        try:
            ended = (await self._act(act)).ended
        finally:
            self._access = None
        assert ended is not None, "it ran"
        return ended

    async def judge(self, script: Path, variables: Mapping[str, str]) -> Verdict:
        archive = archive_folder(script.parent)
        act = Judge(archive=archive, script=script.name, variables=dict(variables))
        verdict = (await self._act(act)).verdict
        assert verdict is not None, "it judged"
        return verdict

    async def remove(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._socket is not None:
            await self._socket.close()
        if self._http is not None:
            await self._http.close()
        self._socket = self._http = None

    async def _act(self, act: Open | Put | Read | Run | Judge) -> Answer:
        """One act of the workshop there. A cancelled one ends the workshop: its program must not go on."""
        lost = HostFault(f"the server of workshops at {self.address} was lost in {act.act!r}")
        if self._socket is None or self._socket.closed:
            raise lost
        try:
            await self._socket.send_str(act.model_dump_json())
            answer = await self._answers.get()
        except ConnectionError:
            raise lost from None
        except BaseException:
            await self._socket.close()
            raise
        if answer is None:
            raise lost
        if answer.failed is not None:
            raise answer.failed.exception()
        return answer

    async def _listen(self, socket: "ClientWebSocketResponse") -> None:
        """Take what the server says; unblocked by the end of the websocket."""
        try:
            async for message in socket:
                said = SAID.validate_json(message.data)
                if isinstance(said, Connect):
                    self._begin(self._join(said.connect))
                else:
                    self._answers.put_nowait(said)
        finally:
            self._answers.put_nowait(None)

    async def _join(self, connection: str) -> None:
        """Take one connection of an agent to the gateway."""
        import aiohttp

        if self._access is None:
            return  # it is over; the server's agent hears nothing
        url = urlsplit(self._access.url)
        path = CONNECTION.format(session=self._session, connection=connection)
        with contextlib.suppress(OSError, aiohttp.ClientError):
            far = await asyncio.open_connection(url.hostname, url.port)
            try:
                await carry(*far, await self._opened(path))
            finally:
                far[1].close()

    async def _opened(self, path: str) -> "ClientWebSocketResponse":
        assert self._http is not None, "it was opened"
        return await self._http.ws_connect(
            self.address + path, heartbeat=ALIVE_SECONDS, max_msg_size=MOST_BYTES
        )

    def _begin(self, act: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(act)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
