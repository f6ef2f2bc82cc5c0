"""An environment on a host as an episode sees it: whose fault is what, and hosts that come back.

The hosts here are plain objects with the methods of an actor's handle; nothing starts Ray.
"""

import asyncio

import pytest
from fakes import TASK, Remote
from ray.exceptions import RayActorError, RayTaskError

from envs.message import ToolCall
from envs.session import EnvFault, HostFault
from rl.config import EnvTable
from rl.env_hosts import HostPool, HostSession

TABLE = EnvTable(id="calculator")


class FakeHost:
    """Answers every act with its name, or raises `error` while it is set."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[tuple] = []
        for act in ("open", "step", "score", "close", "ping"):
            setattr(self, act, Remote(self._answer(act)))

    def _answer(self, act: str):
        async def answer(*arguments):
            self.asked.append((act, *arguments))
            if self.error is not None:
                raise self.error
            return act

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
    await asyncio.sleep(0)
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
    host.error = RayTaskError("step", "Traceback ...", fault).as_instanceof_cause()
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
    assert {await pool.acquire() for _ in range(4)} == {0, 1}


async def test_where_all_hosts_are_down_an_episode_waits_for_the_first_to_answer():
    host = FakeHost(RayActorError())
    pool = HostPool([host])
    pool.report(0, stuck=False)
    opening = asyncio.create_task(HostSession(pool, "g0.0", TABLE).open(TASK))
    await until(lambda: host.asked)
    assert not opening.done()
    host.error = None
    assert await asyncio.wait_for(opening, 10) == "open"
