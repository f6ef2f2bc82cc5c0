"""A wire: what one rollout controller asks of one host or engine, over a TCP connection of their own.

A call of a Ray actor costs each side about half a millisecond of CPU, a tool call often a hundredth of it.
One actor call per turn of the event loop, with all acts of that turn in it, was measured beside this: it
takes the controller 0.25 to 0.34 ms of CPU per tool call at 2,000 calls/s, where this wire takes 0.07 to
0.08, and a fast act waits for the slowest of its batch. With results streamed back as they come (0.19 to 0.21
ms) none waits, but it carried 130 to 1,500 calls/s where this wire carried 1,300 to 5,000 in the same
minutes. (Two rounds on two cores that other work kept busy; docs/supervision.md.) So the controller's end
(`RpcClient`) writes acts to the host's end (`RpcServer`), which runs each as a task of its own and writes
its result as soon as it is done: a slow tool delays nobody. What comes together in one turn of the event loop
goes in one write. Turns of the policy go to engines in the same way. Ray is asked for the address only (by
who makes the client).

The connection is the lease: when it is lost, the controller counts what it had asked as lost, and the host
closes what it had opened. The next act makes a new one.

On the wire: half of the host's secret from the controller, the other half in answer, then messages: eight
bytes of length and a pickle, the first one the client's name. Nothing is unpickled before the secret fits.
Acts and results are pickled one by one inside, so that one that cannot be sent fails alone. The secret keeps
out who does not know it; who can read the network can read it, as all that Ray sends.
"""

import asyncio
import hmac
import itertools
import os
import pickle
import secrets
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayActorError, RayError

from envs.session import EnvFault
from envs.text import told
from rl.actors.actor_method import RemoteMethod
from rl.nodes.deadline import within
from rl.nodes.process import first_line

# From the first packet to the host's half of the secret.
CONNECT_SECONDS = 10.0
HALF = 32
LENGTH = struct.Struct(">Q")


class PeerLost(Exception):
    """The host died, or cannot be reached: what a sentence says of it, such as "died"."""


@dataclass(frozen=True)
class Address:
    """Where a host listens, and what both ends have to know: `Address("10.0.0.7", 40213, bytes)`."""

    node: str
    port: int
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Load:
    """How busy a host is: `Load("10.0.0.1", 12, 3.5)` has 12 sessions, on a node with 3.5 CPUs idle."""

    node: str
    sessions: int
    idle_cpus: float


async def address_of(ask: RemoteMethod[[], Address], seconds: float) -> Address:
    """Ask an actor by its method `address` where it is now. Raises PeerLost, whatever Ray says of it."""
    try:
        return await within(ask.remote(), seconds)
    except RayActorError:
        raise PeerLost("died") from None
    except RayError as error:
        raise PeerLost(f"cannot be connected to: {first_line(error)}") from None
    except TimeoutError:
        raise PeerLost(f"did not tell its address within {seconds:g} s") from None


class _Stream:
    """Numbered pickles both ways over a connection that may come later than the first of them."""

    def __init__(self, message: Callable[[list[tuple[int, bytes]]], object]) -> None:
        """`message(pickles)`: what is sent where these have come together."""
        self.message = message
        self.unsent: list[tuple[int, bytes]] = []
        self.some = asyncio.Event()

    def put(self, number: int, pickled: bytes) -> None:
        self.unsent.append((number, pickled))
        self.some.set()

    async def run(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        take: Callable[[Any], None],
    ) -> None:
        """Send what is put, and take what comes, until the connection is lost."""
        sending = asyncio.create_task(self._send(writer))
        # Whatever ends the one direction ends the other.
        sending.add_done_callback(lambda _: writer.transport.abort())
        try:
            while True:
                take(await _receive(reader))
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            sending.cancel()

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await self.some.wait()
            self.some.clear()
            pickles, self.unsent = self.unsent, []
            try:
                _write(writer, self.message(pickles))
                await writer.drain()
            except OSError:
                return


def _write(writer: asyncio.StreamWriter, message: object) -> None:
    body = pickle.dumps(message)
    writer.write(LENGTH.pack(len(body)) + body)


async def _receive(reader: asyncio.StreamReader) -> Any:
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    return pickle.loads(await reader.readexactly(length))


class RpcServer:
    """The host's end of all clients."""

    def __init__(
        self,
        play: Callable[..., Awaitable[object]],
        left: Callable[[str], Awaitable[None]],
        load: Callable[[], Load | None],
    ) -> None:
        """`play(owner, method, *arguments)` is one act; what it raises goes back to who asked. `left(owner)`
        closes what a connection that is gone had opened. `load()` goes with each answer."""
        self.play = play
        self.left = left
        self.load = load
        self.opening = asyncio.Lock()
        self.server: asyncio.Server | None = None
        self.secret = secrets.token_bytes(2 * HALF)
        self.clients: dict[str, asyncio.StreamWriter] = {}
        self.numbers = itertools.count()
        self.files: set[int] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        os.register_at_fork(after_in_child=self._let_go)

    async def address(self, node: str) -> Address:
        """Listen on this address of the machine, once. Raises OSError where that cannot be."""
        async with self.opening:
            if self.server is None:
                self.server = await asyncio.start_server(self._serve, node, 0)
        return Address(node, self.server.sockets[0].getsockname()[1], self.secret)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if not hmac.compare_digest(await reader.readexactly(HALF), self.secret[:HALF]):
                    return
                writer.write(self.secret[HALF:])
                client = await _receive(reader)
        except (OSError, asyncio.IncompleteReadError):
            return
        else:
            await self._hold(client, reader, writer)
        finally:
            writer.transport.abort()

    async def _hold(
        self, client: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # A name for each connection: what an earlier one has left open closes beside what this one does.
        owner = f"{client}#{next(self.numbers)}"
        if client in self.clients:
            # Of a controller that was started anew, or that lost its connection and we did not notice.
            self.clients[client].transport.abort()
        self.clients[client] = writer
        self.files.add(file := writer.get_extra_info("socket").fileno())
        try:
            stream = _Stream(lambda results: (results, self.load()))
            await stream.run(reader, writer, lambda acts: self._begin(owner, stream, acts))
        finally:
            self.files.discard(file)
            if self.clients.get(client) is writer:
                del self.clients[client]
            # An act that has come has to begin before what it opens can be closed.
            await asyncio.sleep(0)
            await self.left(owner)

    def _begin(self, owner: str, stream: _Stream, acts: list[tuple[int, bytes]]) -> None:
        for number, act in acts:
            self.tasks.add(task := asyncio.create_task(self._run(owner, stream, number, act)))
            task.add_done_callback(self.tasks.discard)

    async def _run(self, owner: str, stream: _Stream, number: int, act: bytes) -> None:
        method, outcome = "act", (None, None)
        try:
            method, arguments = pickle.loads(act)
            outcome = await self.play(owner, method, *arguments), None
        except asyncio.CancelledError:  # by a close, and nobody waits; or by the environment itself
            outcome = None, EnvFault("reply", f"{method}: the environment cancelled its own task")
        except Exception as error:
            outcome = None, error
        except BaseException as error:  # SystemExit, say, would end the host's event loop
            outcome = None, EnvFault("reply", f"{method}: {told(error)}")
        try:
            answer = pickle.dumps(outcome)
        except Exception as error:
            sentence = f"{method}: its result cannot be sent: {told(error)}"
            answer = pickle.dumps((None, EnvFault("reply", sentence)))
        stream.put(number, answer)

    def _let_go(self) -> None:
        """In a process that an environment has forked: what it holds open would outlive a host that dies."""
        for file in self.files:
            os.close(file)


class RpcClient:
    """The controller's end of a client."""

    def __init__(
        self,
        address: Callable[[], Awaitable[Address]],
        name: str,
        heard: Callable[[Load], None] = lambda load: None,
    ) -> None:
        """`address()`: where the host is now; raises PeerLost. name: whose client it is (a later one of the
        name ends an earlier one). `heard(load)` is told the host's load."""
        self.address = address
        self.name = name
        self.heard = heard
        self.numbers = itertools.count()
        self.asked: dict[int, asyncio.Future[object]] = {}
        self.stream: _Stream | None = None
        self.link: asyncio.Task[None] | None = None

    async def ask(self, method: str, *arguments: object) -> object:
        """One act's result, or what it raised. Raises PeerLost where the host died under it."""
        return await self._put(method, arguments)

    def tell(self, method: str, *arguments: object) -> None:
        """An act whose result nobody waits for."""
        self._put(method, arguments).cancel()

    def close(self) -> None:
        """End the connection, and with it all that was asked."""
        if self.link is not None:
            self.link.cancel()

    def _put(self, method: str, arguments: tuple[object, ...]) -> asyncio.Future[object]:
        act = pickle.dumps((method, arguments))
        number, answer = next(self.numbers), asyncio.get_running_loop().create_future()
        if self.stream is None:
            self.stream = _Stream(lambda acts: acts)
            self.link = asyncio.create_task(self._hold(self.stream))
        self.asked[number] = answer
        self.stream.put(number, act)
        return answer

    async def _hold(self, stream: _Stream) -> None:
        """Connect, and stay so until the connection is lost, and with it all that was asked."""
        lost = PeerLost("died")
        try:
            await stream.run(*await self._connect(), self._take)
        except PeerLost as error:
            lost = error
        finally:
            asked, self.asked, self.stream = self.asked, {}, None
            for answer in asked.values():
                _settle(answer, None, PeerLost(*lost.args))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = await self.address()
        try:
            return await within(self._greet(address), CONNECT_SECONDS)
        except asyncio.IncompleteReadError:
            why = "it closed the connection"
        except OSError as error:
            why = str(error) or f"no answer within {CONNECT_SECONDS:g} s"
        raise PeerLost(f"cannot be reached at {address.node}:{address.port}: {why}")

    async def _greet(self, to: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(to.node, to.port)
        try:
            writer.write(to.secret[:HALF])
            if not hmac.compare_digest(await reader.readexactly(HALF), to.secret[HALF:]):
                raise ConnectionError("who answers there is not the host")
        except BaseException:
            writer.transport.abort()
            raise
        _write(writer, self.name)
        return reader, writer

    def _take(self, message: tuple[list[tuple[int, bytes]], Load | None]) -> None:
        results, load = message
        if load is not None:
            self.heard(load)
        for number, result in results:
            _settle(self.asked.pop(number), *_unpacked(result))


def _settle(answer: asyncio.Future[object], value: object, error: Exception | None) -> None:
    if answer.done():  # whoever asked is gone
        return
    if error is None:
        answer.set_result(value)
    else:
        answer.set_exception(error)


def _unpacked(result: bytes) -> tuple[object, Exception | None]:
    try:
        return pickle.loads(result)
    except Exception as error:
        sentence = f"its result cannot be read: {told(error)}"
        return None, EnvFault("reply", sentence)
