"""Episodes of a child interpreter beside each other: whose is which, and what of one given up early."""

import asyncio

import pytest

from envs.agents.access import ModelAccess
from envs.env import Task
from envs.interop import verifiers
from envs.interop.concurrent_episodes import Episodes
from envs.interop.verifiers import Verifiers, VerifiersConfig


async def played(*_) -> dict:
    return {"ok": True}


def test_a_number_of_a_child_that_died_is_none_of_the_next_ones():
    first, second = Episodes(played), Episodes(played)
    number = first.begin("{}", {}, "http://x", "key", "policy")
    own = second.begin("{}", {}, "http://x", "key", "policy")
    assert second.ended([number]) == {str(number): {"lost": True}}
    while not (found := second.ended([own])):
        pass
    assert found == {str(own): {"ok": True}}


class SlowChild:
    """Begins an episode only after a while."""

    alive = True

    def __init__(self) -> None:
        self.asked: list[tuple[str, object]] = []
        self.free = asyncio.Event()

    async def ask(self, method: str, **arguments) -> object:
        self.asked.append((method, arguments.get("number")))
        if method == "begin":
            await self.free.wait()
        return {"versions": {}, "begin": 7}.get(method)


async def test_an_episode_that_is_given_up_before_the_child_has_begun_it_is_ended_there(
    monkeypatch,
):
    child = SlowChild()
    monkeypatch.setattr(verifiers, "child_interpreter", lambda *_: child)
    env = Verifiers(VerifiersConfig(python="python", settings={"taskset": {"id": "a"}}))
    await env.reset(Task("verifiers", {"row": {"prompt": "go"}, "heldout": False}))
    access = ModelAccess("http://x", "key", "policy", 3, 100)
    playing = asyncio.create_task(env.play(access))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing
    asyncio.get_running_loop().call_soon(child.free.set)
    await env.close()
    assert child.asked == [("versions", None), ("begin", None), ("drop", 7)]
