"""A client over a real socket: each act is answered as soon as it is done, none waits for a dead host."""

import asyncio
import os
import pickle
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from envs.message import Message, ToolSchema
from envs.session import EnvFault, Opening
from rl.actors import rpc
from rl.actors.rpc import HALF, LENGTH, Address, Load, PeerLost, RpcClient, RpcServer
from rollout.engine import Request

pytestmark = pytest.mark.process


class Unreadable:
    """Can be pickled, and not be read."""

    def __reduce__(self):
        return (int, ("no number",))


class Host:
    """A host whose acts are `say`, which answers at once, and `wait`, which waits for `go`."""

    def __init__(self) -> None:
        self.start()
        self.go = asyncio.Event()
        self.begun: list[Any] = []
        self.left: list[str] = []

    def start(self) -> None:
        self.end = RpcServer(self.play, self._left, lambda: Load("node", 3, 1.0))

    async def address(self) -> Address:
        return await self.end.address("127.0.0.1")

    async def play(self, client: str, method: str, value: Any = None) -> Any:
        self.begun.append(value)
        if method == "wait":
            await self.go.wait()
        if isinstance(value, Exception):
            raise value
        return (lambda: value) if method == "odd" else value

    async def _left(self, client: str) -> None:
        self.left.append(client)

    def die(self) -> None:
        """As the operating system does it for a process that ends."""
        if self.end.server is not None:
            self.end.server.close()
        for held in self.end.clients.values():
            held.transport.abort()


@asynccontextmanager
async def clients(host: Host, *names: str) -> AsyncIterator[list[RpcClient]]:
    opened = [RpcClient(host.address, name) for name in names]
    yield opened
    host.die()
    await until(lambda: not host.end.clients and not any(client.asked for client in opened))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_what_is_asked_together_is_answered_each_with_its_own():
    async with clients(Host(), "c") as (client,):
        assert await asyncio.gather(*(client.ask("say", n) for n in range(500))) == list(range(500))


async def test_what_is_asked_in_one_turn_goes_in_one_write(monkeypatch):
    written: list[Any] = []
    write = rpc._write
    monkeypatch.setattr(rpc, "_write", lambda w, m: (written.append(m), write(w, m)))
    host = Host()
    async with clients(host, "c") as (client,):
        await client.ask("say")
        written.clear()
        await asyncio.gather(*(client.ask("say", n) for n in range(50)))
        assert [len(written[0]), len(written)] == [50, 2], "the acts, and their results"


async def test_nothing_waits_for_more_to_send_with_it():
    host = Host()
    async with clients(host, "c") as (client,):
        await client.ask("say")
        assert client.link is not None
        for held in host.end.clients.values():
            there = held.get_extra_info("socket")
            assert there.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_slow_act_delays_no_other_and_comes_when_it_is_done():
    host = Host()
    async with clients(host, "c") as (client,):
        slow = [asyncio.create_task(client.ask("wait", f"slow {n}")) for n in range(3)]
        for number in range(20):
            assert await client.ask("say", number) == number
        assert not any(task.done() for task in slow)
        host.go.set()
        assert await asyncio.gather(*slow) == ["slow 0", "slow 1", "slow 2"]


async def test_an_act_and_a_result_of_many_megabytes_pass():
    async with clients(Host(), "c") as (client,):
        large = os.urandom(8 * 2**20)
        assert await asyncio.gather(client.ask("say", large), client.ask("say", 1)) == [large, 1]


async def test_what_an_act_raises_is_its_own():
    async with clients(Host(), "c") as (client,):
        asked = [
            client.ask("say", EnvFault("tool", "the world is gone", "trace")),
            client.ask("say", 7),
        ]
        fault, other = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(fault, EnvFault) and (fault.kind, fault.trace) == ("tool", "trace")
        assert other == 7


async def test_an_environment_that_cancels_itself_is_at_fault():
    async def play(client: str, method: str) -> None:
        raise asyncio.CancelledError

    host = Host()
    host.end.play = play
    async with clients(host, "c") as (client,):
        with pytest.raises(EnvFault, match="step: the environment cancelled its own task"):
            await client.ask("step")


@pytest.mark.parametrize(
    ("method", "value", "error", "sentence"),
    [
        ("odd", 1, EnvFault, "odd: its result cannot be sent"),
        ("say", lambda: 1, (AttributeError, pickle.PicklingError), "pickle"),
        ("say", Unreadable(), ValueError, "no number"),
    ],
    ids=["a result that cannot be sent", "an act that cannot be sent", "that cannot be read"],
)
async def test_what_cannot_be_sent_or_read_fails_alone(method, value, error, sentence):
    async with clients(Host(), "c") as (client,):
        asked = [client.ask("say", 1), client.ask(method, value), client.ask("say", 2)]
        one, fault, two = await asyncio.gather(*asked, return_exceptions=True)
        assert (one, two) == (1, 2)
        assert isinstance(fault, error) and sentence in str(fault)


async def test_a_result_that_cannot_be_read_fails_alone():
    async def play(client: str, method: str) -> Any:
        return Unreadable()

    host = Host()
    host.end.play = play
    async with clients(host, "c") as (client,):
        with pytest.raises(
            EnvFault, match="its result cannot be read: ValueError: invalid literal"
        ):
            await client.ask("say")


async def test_when_the_host_dies_what_was_there_fails_and_what_comes_after_finds_the_new_one():
    host = Host()
    async with clients(host, "c") as (client,):
        lost = [asyncio.create_task(client.ask("wait", n)) for n in range(3)]
        await until(lambda: len(host.begun) == 3)
        before = await host.address()
        host.die()
        answers = await asyncio.gather(*lost, return_exceptions=True)
        assert [(type(a), str(a)) for a in answers] == [(PeerLost, "died")] * 3
        host.start()
        assert await client.ask("say", 4) == 4
        assert (await host.address()).port != before.port


async def test_a_host_that_dies_between_acts_is_found_again_by_the_next_one():
    host = Host()
    async with clients(host, "c") as (client,):
        await client.ask("say", 1)
        host.die()
        await until(lambda: client.stream is None)
        host.start()
        assert await client.ask("say", 2) == 2


async def test_who_has_gone_is_not_answered_and_holds_nothing_up():
    host = Host()
    async with clients(host, "c") as (client,):
        gone = asyncio.create_task(client.ask("wait"))
        await until(lambda: host.begun)
        gone.cancel()
        client.tell("say", 1)
        assert await client.ask("say", 2) == 2
        assert host.begun == [None, 1, 2]
        host.go.set()
        await until(lambda: not client.asked)


async def test_each_answer_brings_the_hosts_load():
    heard: list[Load] = []
    async with clients(Host(), "c") as (client,):
        client.heard = heard.append
        await client.ask("say", 1)
    assert heard == [Load("node", 3, 1.0)]


async def test_when_a_controller_is_gone_what_it_left_is_closed():
    host = Host()
    async with clients(host, "c", "d") as (client, other):
        await asyncio.gather(client.ask("say"), other.ask("say"))
        assert client.link is not None
        client.link.cancel()
        await until(lambda: host.left)
        assert host.left == ["c#0"]
        assert await other.ask("say", 1) == 1


async def test_a_later_lane_of_a_name_ends_the_earlier_one_and_waits_for_nothing_it_left():
    host = Host()
    closed = asyncio.Event()

    async def left(owner: str) -> None:
        host.left.append(owner)
        await closed.wait()

    host.end.left = left
    async with clients(host, "c", "c") as (earlier, later):
        await earlier.ask("say", "earlier")
        assert await asyncio.wait_for(later.ask("say", "later"), 10) == "later"
        await until(lambda: earlier.stream is None)
        assert host.left == ["c#0"]
        closed.set()


async def test_what_an_act_opens_is_closed_also_where_the_controller_goes_at_once():
    host = Host()
    opened: list[int] = []

    async def left(client: str) -> None:
        opened.extend(host.begun)

    host.end.left = left
    address = await host.address()
    _, writer = await asyncio.open_connection(address.node, address.port)
    reader = asyncio.StreamReader()
    body = pickle.dumps([(n, pickle.dumps(("say", (n,)))) for n in range(3)])
    reader.feed_data(LENGTH.pack(len(body)) + body)
    reader.feed_eof()
    await host.end._hold("c", reader, writer)
    assert opened == [0, 1, 2]
    host.die()


async def test_who_does_not_know_the_secret_is_refused_and_nothing_of_it_is_unpickled(monkeypatch):
    read: list[bytes] = []
    monkeypatch.setattr(rpc.pickle, "loads", read.append)
    host = Host()
    address = await host.address()
    wrong = replace(address, secret=bytes(2 * HALF))
    client = RpcClient(lambda: asyncio.sleep(0, wrong), "c")
    with pytest.raises(PeerLost, match=f"cannot be reached at 127.0.0.1:{address.port}: it closed"):
        await client.ask("say", 1)
    assert read == [] and not host.end.clients
    host.die()


async def test_a_host_that_does_not_know_the_secret_is_none(monkeypatch):
    host = Host()
    true = await host.address()
    wrong = replace(true, secret=true.secret[:HALF] + bytes(HALF))
    with pytest.raises(PeerLost, match="who answers there is not the host"):
        await RpcClient(lambda: asyncio.sleep(0, wrong), "c").ask("say", 1)
    host.die()


async def test_where_nobody_listens_the_sentence_names_the_address():
    host = Host()
    address = await host.address()
    host.die()
    client = RpcClient(lambda: asyncio.sleep(0, address), "c")
    with pytest.raises(PeerLost, match=f"cannot be reached at 127.0.0.1:{address.port}: .*111"):
        await client.ask("say", 1)


async def test_where_nobody_answers_the_connection_is_given_up_on_both_ends(monkeypatch):
    monkeypatch.setattr(rpc, "CONNECT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = Address("127.0.0.1", silent.getsockname()[1], bytes(2 * HALF))
        with pytest.raises(PeerLost, match=f":{address.port}: no answer within 0.05 s"):
            await RpcClient(lambda: asyncio.sleep(0, address), "c").ask("say", 1)
    host = Host()
    address = await host.address()
    reader, writer = await asyncio.open_connection(address.node, address.port)
    assert await reader.read() == b"", "closed"
    writer.close()
    host.die()


HOST_PROCESS = """
import asyncio, os, time
from rl.actors.rpc import RpcServer, Load

async def play(client, method):
    if child := os.fork():
        print(os.getpid(), child, flush=True)
        await asyncio.Event().wait()
    time.sleep(600)

async def left(client):
    pass

async def main():
    address = await RpcServer(play, left, lambda: Load("", 0, 0.0)).address("127.0.0.1")
    print(address.port, address.secret.hex(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_host_that_is_killed_is_noticed_though_a_process_that_it_forked_lives_on():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOST_PROCESS, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    port, secret = (await process.stdout.readline()).split()
    address = Address("127.0.0.1", int(port), bytes.fromhex(secret.decode()))
    asked = asyncio.create_task(RpcClient(lambda: asyncio.sleep(0, address), "c").ask("step"))
    host, child = map(int, (await process.stdout.readline()).split())
    try:
        assert not asked.done()
        os.kill(host, signal.SIGKILL)
        with pytest.raises(PeerLost, match="died"):
            await asyncio.wait_for(asked, 10)
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        await process.communicate()


def test_what_waits_by_the_thousand_shares_its_tools_and_its_ids_over_the_wire():
    tools = (ToolSchema("add", "adds", {"type": "object", "properties": {"a": {}}}),)
    request = Request("r", "s", tuple(range(1000, 1010)), 5)
    openings, requests = (
        [pickle.loads(pickle.dumps(one)) for _ in range(2)]
        for one in (Opening((Message("user", "?"),), tools), request)
    )
    assert openings[0].tools == tools and openings[0].tools is openings[1].tools
    assert requests[0] == request
    assert all(a is b for a, b in zip(*(one.prompt_ids for one in requests), strict=True))
