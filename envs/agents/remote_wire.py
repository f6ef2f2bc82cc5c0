"""The messages between `RemoteWorkshop` and a server of workshops: JSON on a websocket that is the workshop.

It is removed when the websocket ends, whoever ends it. The server greets with a session; the client sends one
act at a time, and the server answers each. While an agent runs, a `Connect` of the server says that it asks
for the policy: the client opens a second websocket for it, and carries bytes between that and the gateway.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from envs.agents.workshop import ContainerConfig, Ended, Plan, Verdict
from envs.session import HostFault

if TYPE_CHECKING:
    from aiohttp import ClientWebSocketResponse
    from aiohttp.web import WebSocketResponse

SESSION, CONNECTION = "/v1/workshop", "/v1/workshop/{session}/{connection}"
TOKEN_VARIABLE = "DORADO_SANDBOX_TOKEN"
# Bytes of one message: the files of a task.
MOST_BYTES = 256 * 2**20
# Each side asks the other so often if it is there, and ends the workshop where it is not.
ALIVE_SECONDS = 20.0
_END = "end"


class _Message(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64"
    )


class Greeting(_Message):
    """The server's first message: the workshop's name, which a second websocket has to say."""

    session: str


class Open(_Message):
    """Make the workshop. scripts: contents by their paths with the client."""

    act: Literal["open"] = "open"
    readable: tuple[str, ...]
    scripts: dict[str, bytes]
    container: ContainerConfig
    context: bytes

    @staticmethod
    def of(plan: Plan) -> "Open":
        """The message of a plan; the sandbox is the server's to choose. Raises OSError."""
        return Open(
            readable=plan.readable,
            scripts={str(path): path.read_bytes() for path in plan.scripts},
            container=plan.container,
            context=plan.context,
        )


class Put(_Message):
    act: Literal["put"] = "put"
    archive: bytes


class Read(_Message):
    act: Literal["read"] = "read"
    name: str
    most: int


class Run(_Message):
    """Run a program; key and model are the policy's, for an agent."""

    act: Literal["run"] = "run"
    argv: tuple[str, ...]
    variables: dict[str, str]
    stdin: str
    seconds: float | None
    key: str | None
    model: str


class Judge(_Message):
    """Run a script of a folder, which comes as an archive."""

    act: Literal["judge"] = "judge"
    archive: bytes
    script: str
    variables: dict[str, str]


class Opened(_Message):
    """An open workshop: its Python, and its scripts as programs see them."""

    python: str
    scripts: dict[str, str]


class Failed(_Message):
    """An act that failed, and by whose fault."""

    kind: Literal["host", "timeout", "value", "failed"]
    error: str

    def exception(self) -> Exception:
        """The failure, as a workshop of this machine would have raised it."""
        kinds = {"timeout": TimeoutError, "value": ValueError, "failed": RuntimeError}
        return kinds.get(self.kind, HostFault)(self.error)


class Connect(_Message):
    """An agent asks for the policy by a connection of this name."""

    connect: str


class Answer(_Message):
    """The answer to an act; by the act one of these, or nothing."""

    opened: Opened | None = None
    text: str | None = None
    ended: Ended | None = None
    verdict: Verdict | None = None
    failed: Failed | None = None


ACT: TypeAdapter[Open | Put | Read | Run | Judge] = TypeAdapter(
    Annotated[Open | Put | Read | Run | Judge, Field(discriminator="act")],
)
SAID: TypeAdapter[Answer | Connect] = TypeAdapter(Answer | Connect)


def failed(error: Exception, sentence: str) -> Failed:
    """The message of a failure."""
    if isinstance(error, TimeoutError):
        return Failed(kind="timeout", error=sentence)
    if isinstance(error, ValueError):
        return Failed(kind="value", error=sentence)
    if isinstance(error, HostFault):
        return Failed(kind="host", error=sentence)
    return Failed(kind="failed", error=sentence)


def plan_of(message: Open, sandbox: str, folder: Path) -> tuple[Plan, dict[str, Path]]:
    """The plan of a message, its scripts written below a folder; and where each of them is."""
    written: dict[str, Path] = {}
    for number, (name, content) in enumerate(message.scripts.items()):
        path = folder / str(number) / Path(name).name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        written[name] = path
    plan = Plan(
        sandbox,
        readable=message.readable,
        scripts=tuple(written.values()),
        container=message.container,
        context=message.context,
    )
    return plan, written


async def carry(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    socket: "ClientWebSocketResponse | WebSocketResponse",
) -> None:
    """Carry bytes both ways between a connection and a websocket, until the websocket has ended."""

    async def out() -> None:
        while part := await reader.read(65536):
            await socket.send_bytes(part)
        await socket.send_str(_END)

    async def back() -> None:
        async for message in socket:
            if isinstance(message.data, bytes):
                writer.write(message.data)
                await writer.drain()
            elif message.data == _END:
                if going.done():
                    return
                writer.write_eof()

    going = asyncio.create_task(out())
    coming = asyncio.create_task(back())
    try:
        await asyncio.wait({going, coming}, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in (going, coming):
            task.cancel()
        await asyncio.gather(going, coming, return_exceptions=True)
        await socket.close()
        writer.close()
