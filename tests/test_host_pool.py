"""An environment on a host as an episode sees it: whose fault is what, and hosts that come back.

The hosts here are plain objects with the methods of an actor's handle, and real clients on the loopback;
nothing starts Ray.
"""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import TASK, Remote
from ray.exceptions import OutOfMemoryError, RayActorError

from envs.builtin.calculator import Calculator, CalculatorConfig
from envs.env import Env
from envs.message import ToolCall
from envs.session import EnvFault, HostFault
from rl.actors import host_pool
from rl.actors.env_host import EnvHost
from rl.actors.host_pool import HostPool, HostSession
from rl.actors.rpc import Load, RpcServer
from rl.env_table import EnvTable

TABLE = EnvTable(id="calculator")


class FakeHost(EnvHost):
    """Answers every act with its name, or raises `error` while it is set. While `dead`, it is not there."""

    made: list["FakeHost"] = []

    def __init__(self, error: Exception | None = None, *, dead: bool = False) -> None:
        self.error = error
        self.dead = dead
        self.asked: list[tuple] = []
        self.times_asked = 0  # times that its address was asked for
        self.node, self.idle_cpus, self.measured = "127.0.0.1", 1.0, float("inf")
        for act in ("open", "step", "score", "close", "ping"):
            setattr(self, act, self._answer(act))
        handle: Any = self
        handle.address = Remote(self._address)
        self.start()
        self.made.append(self)

    def start(self) -> None:
        """Of a process that has begun anew."""
        self.sessions: dict[str, Any] = {}
        self.suspended, self.tables = {}, {TABLE.label: TABLE}
        self.server = RpcServer(self._play, self._close_all, self.load)

    def die(self) -> None:
        """Its process ends, until `dead` is unset; then it is a new one."""
        self.dead = True
        if self.server.server is not None:
            self.server.server.close()
        for held in self.server.clients.values():
            held.transport.abort()
        self.start()

    async def _address(self):
        self.times_asked += 1
        if self.dead:
            raise RayActorError
        return await EnvHost.address(self)

    def _answer(self, act: str):
        async def answer(session: str, *arguments):
            self.asked.append((act, session.rpartition("/")[2], *arguments))
            if self.error is not None:
                raise self.error
            if act == "open":
                self.sessions[session] = None
            elif act != "ping":
                self.sessions[session]
            if act == "close":
                del self.sessions[session]
            return act

        return answer


@pytest.fixture(autouse=True)
async def hosts_end() -> Any:
    """No connection outlives its test."""
    yield
    for host in FakeHost.made:
        host.die()
        await until(lambda host=host: not host.server.clients)
    FakeHost.made.clear()


async def until(condition) -> None:
    """Let the other tasks run until the condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_an_episodes_acts_all_go_to_the_host_it_opened_on():
    hosts = [FakeHost(), FakeHost()]
    session = HostSession(HostPool(hosts), "g0.0", TABLE)
    call = ToolCall("add", {"a": 1, "b": 2})
    assert await session.open(TASK) == "open"
    assert await session.step("", (call,)) == "step"
    assert await session.score() == "score"
    await session.close()
    await until(lambda: any("close" in act for host in hosts for act in host.asked))
    asked = [host.asked for host in hosts if host.asked]
    assert asked == [
        [
            ("open", "g0.0", "calculator", TASK),
            ("step", "g0.0", "", (call,)),
            ("score", "g0.0"),
            ("close", "g0.0"),
        ]
    ]


async def test_episodes_are_spread_over_the_hosts():
    hosts = [FakeHost() for _ in range(3)]
    pool = HostPool(hosts)
    for number in range(6):
        await HostSession(pool, f"g0.{number}", TABLE).open(TASK)
    assert [len(host.asked) for host in hosts] == [2, 2, 2]


async def test_an_environment_that_was_never_opened_is_not_closed():
    host = FakeHost()
    await HostSession(HostPool([host]), "g0.0", TABLE).close()
    await asyncio.sleep(0)
    assert host.times_asked == 0, "nor connected to"


@pytest.mark.parametrize(
    ("error", "kind", "sentence", "down"),
    [
        (EnvFault("tool", "the world is gone"), EnvFault, "the world is gone", False),
        (None, HostFault, r"the host of environment 'calculator' \(host-0\) died", True),
        (KeyError("g0.0"), HostFault, "has lost the episode: it was started anew", False),
    ],
)
async def test_each_failure_is_the_fault_of_who_failed(error, kind, sentence, down):
    host = FakeHost()
    pool = HostPool([host])
    session = HostSession(pool, "g0.0", TABLE)
    await session.open(TASK)
    host.error = error
    if down:
        host.die()
    with pytest.raises(kind, match=sentence):
        await session.step("", ())
    assert bool(pool.down) is down
    host.error, host.dead = None, False
    await until(lambda: not pool.down)


@pytest.mark.parametrize(
    "fault", [EnvFault("tool", "the world is gone"), HostFault("the server is gone")], ids=repr
)
async def test_a_fault_inside_the_host_comes_back_as_it_was_raised(fault):
    host = FakeHost()
    pool = HostPool([host])
    session = HostSession(pool, "g0.0", TABLE)
    await session.open(TASK)
    host.error = fault
    with pytest.raises(type(fault)) as caught:
        await session.step("", ())
    assert str(caught.value) == str(fault)
    assert not pool.down


async def test_a_host_that_died_is_left_alone_until_it_answers_again():
    hosts = [FakeHost(), FakeHost()]
    pool = HostPool(hosts)
    dead = hosts[0]
    dead.die()
    pool.report(0, stuck=False)
    pool.report(0, stuck=False)
    assert {await pool.acquire() for _ in range(4)} == {1}
    dead.dead = False
    await until(lambda: not pool.down)
    assert [await pool.acquire() for _ in range(5)] == [0, 0, 0, 0, 1], "it has none yet"


async def test_where_all_hosts_are_down_an_episode_waits_for_the_first_to_answer():
    host = FakeHost(dead=True)
    pool = HostPool([host])
    pool.report(0, stuck=False)
    opening = asyncio.create_task(HostSession(pool, "g0.0", TABLE).open(TASK))
    await until(lambda: host.times_asked)
    assert not opening.done()
    host.dead = False
    assert await asyncio.wait_for(opening, 10) == "open"


async def test_an_episode_whose_host_dies_before_the_opening_is_begun_on_another_one():
    hosts = [FakeHost(dead=True), FakeHost()]
    pool = HostPool(hosts)
    pool.turn = 1
    session = HostSession(pool, "g0.0", TABLE)
    assert await session.open(TASK) == "open"
    assert (session.host, session.retries) == ("host-1", 1)
    for task in pool.down.values():
        task.cancel()


@pytest.mark.parametrize(
    ("error", "retries", "begun"), [(None, 0, 0), (None, 2, 2), (EnvFault("reset", "broken"), 2, 0)]
)
async def test_an_opening_is_tried_again_for_a_hosts_fault_only_and_so_often(error, retries, begun):
    pool = HostPool([FakeHost(error, dead=error is None) for _ in range(4)])
    table = EnvTable(id="calculator", retries=retries)
    session = HostSession(pool, "g0.0", table)
    with pytest.raises((HostFault, EnvFault)):
        await session.open(TASK)
    assert session.retries == begun
    for task in pool.down.values():
        task.cancel()


async def test_a_host_on_a_node_with_idle_cpus_is_preferred_until_it_has_as_many_sessions_for_each():
    pool = HostPool([FakeHost(), FakeHost()])
    pool._hear(0, Load("busy", 0, 0.5))
    pool._hear(1, Load("idle", 0, 3.5))
    placed = [await pool.acquire() for _ in range(10)]
    assert placed.count(1) == 8


async def test_the_sessions_of_other_controllers_count():
    pool = HostPool([FakeHost(), FakeHost()])
    pool._hear(0, Load("node", 6, 1.0))
    pool._hear(1, Load("node", 0, 1.0))
    assert [await pool.acquire() for _ in range(6)] == [1] * 6


async def test_a_host_that_has_said_nothing_for_long_is_asked_for_its_load():
    hosts = [FakeHost(), FakeHost()]
    pool = HostPool(hosts)
    pool.heard[1] = 0.0
    await pool.acquire()
    await pool.acquire()
    await until(lambda: not pool.asking)
    assert [len(host.asked) for host in hosts] == [0, 1], "once"


async def test_what_a_controller_left_open_is_closed_when_it_is_gone_or_the_next_one_of_its_name_comes():
    host = FakeHost()
    pools = []
    for number, name in enumerate(("controller-1", "controller-10", "controller-1")):
        pools.append(HostPool([host], name))
        await HostSession(pools[-1], f"g{number}", TABLE).open(TASK)
    await until(lambda: ("close", "g0") in host.asked)
    assert ("close", "g1") not in host.asked
    pools[1].clients[0].link.cancel()
    await until(lambda: ("close", "g1") in host.asked)
    assert [session.rpartition("/")[2] for session in host.sessions] == ["g2"]


class Exiting(Calculator):
    """Gives up where it should raise."""

    def __init__(self, config):
        raise SystemExit("no licence")


async def test_an_environment_that_exits_when_it_is_created_is_at_fault_and_not_its_host():
    host = FakeHost()
    pattern = object.__new__(Exiting)  # as it was when the host began
    pattern.config = CalculatorConfig()
    host.tables, host.patterns = {"calculator": TABLE}, dict[str, Env](calculator=pattern)
    with pytest.raises(EnvFault, match="creation: SystemExit: no licence"):
        await EnvHost.open(host, "g0.0", "calculator", TASK)


async def test_a_host_that_was_killed_for_its_memory_is_out_of_reach_and_says_why(monkeypatch):
    host = FakeHost()

    async def killed():
        raise OutOfMemoryError("killed for its memory")

    monkeypatch.setattr(host, "address", SimpleNamespace(remote=killed))
    with pytest.raises(HostFault, match="cannot be connected to: killed for its memory"):
        await HostSession(HostPool([host]), "g0.0", TABLE.model_copy(update={"retries": 0})).open(
            TASK
        )


async def test_an_episode_whose_connection_was_lost_between_its_acts_is_lost_and_the_host_is_not():
    host = FakeHost()
    pool = HostPool([host], "controller-0")
    session = HostSession(pool, "g0", TABLE)
    await session.open(TASK)
    for held in host.server.clients.values():
        held.transport.abort()
    await until(lambda: pool.clients[0].stream is None)
    with pytest.raises(HostFault, match=r"\(host-0\) has lost the episode: .* or its connection"):
        await session.step("", ())
    assert not pool.down and not host.sessions


async def test_a_host_that_nobody_can_connect_to_is_down_and_the_sentence_says_where():
    host = FakeHost()
    address = await EnvHost.address(host)
    host.server.server.close()
    host.address.act = lambda: asyncio.sleep(0, address)
    pool = HostPool([host])
    session = HostSession(pool, "g0", EnvTable(id="calculator", retries=0))
    where = rf"\(host-0\) cannot be reached at 127.0.0.1:{address.port}: "
    with pytest.raises(HostFault, match=where):
        await session.open(TASK)
    assert list(pool.down) == [0]
    host.start()
    host.address.act = host._address
    await until(lambda: not pool.down)


async def test_a_host_that_does_not_tell_where_it_is_is_lost_at_a_deadline(monkeypatch):
    monkeypatch.setattr(host_pool, "ADDRESS_SECONDS", 0.05)
    host = FakeHost()
    host.address.act = asyncio.Event().wait
    session = HostSession(HostPool([host]), "g0", EnvTable(id="calculator", retries=0))
    with pytest.raises(HostFault, match="did not tell its address within"):
        await session.open(TASK)
    for task in session.pool.down.values():
        task.cancel()
