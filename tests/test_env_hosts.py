"""An environment on a host as an episode sees it: whose fault is what, and hosts that come back.

The hosts here are plain objects with the methods of an actor's handle; nothing starts Ray.
"""

import asyncio
from typing import Any

import pytest
from fakes import TASK, Remote
from ray.exceptions import OutOfMemoryError, RayActorError, RayError

from envs.builtin.calculator import Calculator, CalculatorConfig
from envs.env import Env
from envs.message import ToolCall
from envs.session import EnvFault, HostFault
from rl.config import EnvTable
from rl.env_hosts import EnvHost, HostPool, HostSession
from rl.host_lane import Load

TABLE = EnvTable(id="calculator")


class FakeHost(EnvHost):
    """Answers every act with its name, or raises `error` while it is set."""

    def __init__(self, error: Exception | None = None, node: str = "node") -> None:
        self.error = error
        self.asked: list[tuple] = []
        self.sessions: dict[str, Any] = {}
        self.lanes, self.owners, self.closing = {}, {}, set()
        self.node, self.idle_cpus, self.measured = node, 1.0, float("inf")
        for act in ("open", "step", "score", "close"):
            setattr(self, act, self._answer(act))
        handle: Any = self
        handle.exchange = Remote(self._exchange)
        handle.ping = Remote(self._answer("ping"))

    async def _exchange(self, *arguments):
        if isinstance(self.error, RayError):
            raise self.error
        return await EnvHost.exchange(self, *arguments)

    def _answer(self, act: str):
        async def answer(*arguments):
            self.asked.append((act, *arguments))
            if self.error is not None:
                raise self.error
            if act == "open":
                self.sessions[arguments[0]] = None
            return self.load() if act == "ping" else act

        return answer


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
    assert host.asked == []


@pytest.mark.parametrize(
    ("error", "kind", "sentence", "down"),
    [
        (EnvFault("tool", "the world is gone"), EnvFault, "the world is gone", False),
        (RayActorError(), HostFault, "the host of environment 'calculator' died", True),
        (
            OutOfMemoryError("no memory"),
            HostFault,
            "the host of environment 'calculator' died",
            True,
        ),
        (KeyError("g0.0"), HostFault, "was started anew and has lost the episode", False),
    ],
)
async def test_each_failure_is_the_fault_of_who_failed(error, kind, sentence, down):
    host = FakeHost()
    pool = HostPool([host])
    session = HostSession(pool, "g0.0", TABLE)
    await session.open(TASK)
    host.error = error
    with pytest.raises(kind, match=sentence):
        await session.step("", ())
    assert bool(pool.down) is down
    host.error = None
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
    dead.error = RayActorError()
    pool.report(0, stuck=False)
    pool.report(0, stuck=False)
    assert {await pool.acquire() for _ in range(4)} == {1}
    dead.error = None
    await until(lambda: not pool.down)
    assert [await pool.acquire() for _ in range(5)] == [0, 0, 0, 0, 1], "it has none yet"


async def test_where_all_hosts_are_down_an_episode_waits_for_the_first_to_answer():
    host = FakeHost(RayActorError())
    pool = HostPool([host])
    pool.report(0, stuck=False)
    opening = asyncio.create_task(HostSession(pool, "g0.0", TABLE).open(TASK))
    await until(lambda: host.asked)
    assert not opening.done()
    host.error = None
    assert await asyncio.wait_for(opening, 10) == "open"


async def test_an_episode_whose_host_dies_before_the_opening_is_begun_on_another_one():
    hosts = [FakeHost(RayActorError()), FakeHost()]
    pool = HostPool(hosts)
    pool.turn = 1
    session = HostSession(pool, "g0.0", TABLE)
    assert await session.open(TASK) == "open"
    assert (session.host, session.retries) == ("host-1", 1)
    for task in pool.down.values():
        task.cancel()


@pytest.mark.parametrize(
    ("error", "retries", "begun"),
    [(RayActorError(), 0, 0), (RayActorError(), 2, 2), (EnvFault("reset", "broken"), 2, 0)],
)
async def test_an_opening_is_tried_again_for_a_hosts_fault_only_and_so_often(error, retries, begun):
    pool = HostPool([FakeHost(error) for _ in range(4)])
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


async def test_what_a_controller_left_open_is_closed_when_the_next_one_of_its_name_calls():
    host = FakeHost()
    for number, name in enumerate(("controller-0", "controller-1", "controller-0")):
        pool = HostPool([host], name)
        await HostSession(pool, f"g{number}", TABLE).open(TASK)
    await until(lambda: not host.closing)
    assert [act for act in host.asked if act[0] == "close"] == [("close", "g0")]


async def test_what_takes_long_to_close_does_not_delay_the_next_controller():
    host, closed = FakeHost(), asyncio.Event()
    await HostSession(HostPool([host], "controller-0"), "g0", TABLE).open(TASK)

    async def close(session):
        await closed.wait()

    host.close = close
    opening = HostSession(HostPool([host], "controller-0"), "g1", TABLE).open(TASK)
    assert await asyncio.wait_for(opening, 10) == "open"
    assert len(host.closing) == 1
    closed.set()
    await until(lambda: not host.closing)


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
