"""Groups on controllers: what becomes of one whose controller dies or is silent."""

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from fakes import Remote
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    TaskCancelledError,
)

from envs.env import Task
from rl.actors.engine_client import EngineMapMissing
from rl.loop import dispatcher
from rl.loop.dispatcher import Dispatcher, Lost, Played
from rl.samples.group import GroupSpec

SPEC = GroupSpec("g1", "probe", Task("probe", {}), ("g1.0",), train=True)


def playing(
    outcome: Any, monkeypatch: pytest.MonkeyPatch, push_engine_map: Any = None
) -> Dispatcher:
    """A dispatcher over one controller that answers with `outcome` (raised, if it is an error), or does not
    know who serves what until `push_engine_map` returns."""
    told = push_engine_map is None

    async def announced() -> None:
        nonlocal told
        await push_engine_map()
        told = True

    async def answer() -> Any:
        if not told:
            raise EngineMapMissing
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(dispatcher.ray, "cancel", lambda report: None)
    play = SimpleNamespace(remote=lambda spec: (answer(), "samples"))
    handle = SimpleNamespace(play=play, heartbeat=Remote(AsyncMock()))
    actors: Any = SimpleNamespace(controllers={"controller-0": handle})
    return Dispatcher(actors, SimpleNamespace(push_engine_map=announced), 1.0)


@pytest.mark.parametrize(
    "error", [ActorDiedError(), OutOfMemoryError("killed for its memory"), TimeoutError("silent")]
)
async def test_a_group_whose_controller_is_gone_is_lost_by_name_and_no_more(error, monkeypatch):
    played = playing(error, monkeypatch)
    played.crash = lambda controller: f"a segmentation fault in {controller}"
    lost = await asyncio.wait_for(played.play(SPEC), 5)
    assert isinstance(lost, Lost) and lost.why.startswith("controller-0: ")
    assert ("a segmentation fault in controller-0" in lost.why) == isinstance(error, ActorDiedError)
    assert played.busy["controller-0"] == 0 and not played.playing


async def test_a_controllers_death_is_told_once_however_many_groups_it_played(monkeypatch):
    dies = asyncio.Event()

    async def play(spec: GroupSpec) -> None:
        await dies.wait()
        raise ActorDiedError()

    two = SimpleNamespace(remote=lambda spec: (asyncio.ensure_future(play(spec)), "samples"))
    controller = SimpleNamespace(
        play=two, heartbeat=Remote(AsyncMock(side_effect=ActorDiedError()))
    )
    monkeypatch.setattr(dispatcher.ray, "cancel", lambda report: None)
    actors: Any = SimpleNamespace(controllers={"controller-0": controller})
    made = Dispatcher(actors, AsyncMock(), 1.0)
    specs = [GroupSpec(f"g{n}", "probe", SPEC.task, (f"g{n}.0",), train=True) for n in range(8)]
    groups = [asyncio.create_task(made.play(spec)) for spec in specs]
    await asyncio.sleep(0.01)
    dies.set()
    ends = await asyncio.wait_for(asyncio.gather(*groups), 5)
    assert [end.told for end in ends if isinstance(end, Lost)] == [False] + 7 * [True]
    for waits in made.away.values():
        waits.cancel()


async def test_a_group_that_was_given_up_is_not_lost(monkeypatch):
    played = playing(TaskCancelledError(), monkeypatch)
    assert await played.play(SPEC) is None


async def test_a_controller_that_was_started_anew_hears_who_serves_what_and_plays(monkeypatch):
    push_engine_map = AsyncMock()
    played = playing("report", monkeypatch, push_engine_map)
    assert await played.play(SPEC) == Played("report", "samples")
    assert push_engine_map.await_count == 1 and not played.playing


async def test_a_controller_that_is_gone_gets_no_group_before_it_answers(monkeypatch):
    """Ray fails at once what is asked of an actor that starts anew: it would be the least busy one."""
    monkeypatch.setattr(dispatcher, "REACH_SECONDS", 0.001)
    there = asyncio.Event()
    asked: Counter[str] = Counter()

    def controller(name: str) -> Any:
        async def play(spec: GroupSpec) -> str:
            asked[name] += 1
            if name == "a" and not there.is_set():
                raise ActorUnavailableError("The actor is restarting", b"0" * 16)
            await asyncio.sleep(0.01)
            return name

        async def heartbeat() -> None:
            if not there.is_set():
                raise ActorUnavailableError("The actor is restarting", b"0" * 16)

        two = SimpleNamespace(remote=lambda spec: (asyncio.ensure_future(play(spec)), "samples"))
        return SimpleNamespace(play=two, heartbeat=Remote(heartbeat))

    monkeypatch.setattr(dispatcher.ray, "cancel", lambda report: None)
    actors: Any = SimpleNamespace(controllers={name: controller(name) for name in "ab"})
    made = Dispatcher(actors, AsyncMock(), 1.0)
    ends = [await made.play(SPEC) for _ in range(5)]
    assert asked == {"a": 1, "b": 4} and sum(isinstance(end, Lost) for end in ends) == 1
    there.set()
    while made.away:
        await asyncio.sleep(0.001)
    assert await made.play(SPEC) == Played("a", "samples")
    # With all of them gone a group waits.
    there.clear()
    assert isinstance(await made.play(SPEC), Lost)
    actors.controllers.pop("b")
    waiting = asyncio.create_task(made.play(SPEC))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    there.set()
    assert await asyncio.wait_for(waiting, 5) == Played("a", "samples")


async def test_a_group_that_is_given_up_while_its_controller_is_told_is_not_played(monkeypatch):
    told = asyncio.Event()
    played = playing("report", monkeypatch, told.wait)
    group = asyncio.create_task(played.play(SPEC))
    await asyncio.sleep(0.01)
    played.give_up(SPEC.id)
    told.set()
    assert await asyncio.wait_for(group, 5) is None
    assert played.busy["controller-0"] == 0


async def test_a_group_whose_controller_cannot_be_told_is_lost_at_its_deadline(monkeypatch):
    played = playing("report", monkeypatch, asyncio.Event().wait)
    played.limit = 0.05
    assert isinstance(await asyncio.wait_for(played.play(SPEC), 5), Lost)
    assert played.busy["controller-0"] == 0 and not played.playing


async def test_an_error_of_our_own_is_raised(monkeypatch):
    played = playing(ZeroDivisionError(), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        await played.play(SPEC)
