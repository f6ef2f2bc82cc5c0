"""Engines in place of those that died: which are started, what is said of it, and where it ends."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from rl.actors.handles import StartError
from rl.fleet import engine_restarts
from rl.fleet.engine_restarts import EngineRestarts


class Cluster:
    """Starts engines; `fail` are those that cannot start, `room` is set while a node has room for one."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.room.set()
        self.fail: list[str] = []
        self.asked: list[str] = []
        self.ended: list[str] = []

    async def add_engine(self, name: str) -> str:
        self.asked.append(name)
        try:
            await self.room.wait()
        finally:
            self.ended.append(name)
        if name in self.fail:
            raise StartError(f"{name} could not start: no GPU (log: logs/{name}.log)")
        return "10.0.0.9"


class Run:
    """Two engines; at most `most` are started."""

    def __init__(self, most: int = 4, join: Any = None) -> None:
        self.cluster = Cluster()
        self.joined: list[str] = []
        self.dead: list[str] = []
        self.told: list[str] = []
        self.restarts = EngineRestarts(
            self.cluster,
            SimpleNamespace(join=join or self._join),
            SimpleNamespace(say=lambda name, sentence: self.told.append(sentence)),
            engines=2,
            most=most,
            slow_seconds=0.05,
        )

    async def _join(self, name: str) -> bool:
        self.joined.append(name)
        return name not in self.dead

    async def settles(self) -> None:
        """Until nothing is on its way."""
        while self.restarts._tasks:
            await asyncio.wait(self.restarts._tasks)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_restarts, "AGAIN_SECONDS", 0.001)


async def test_an_engine_that_died_is_replaced_by_one_of_another_name():
    run = Run()
    run.restarts.replace("engine-0")
    await run.settles()
    assert run.joined == ["engine-2"]
    assert run.told == [
        "engine-2 starts in place of engine-0",
        "engine-2 has taken the place of engine-0, on node 10.0.0.9",
    ]
    run.restarts.replace("engine-2")
    await run.settles()
    assert run.joined == ["engine-2", "engine-3"]


async def test_one_that_has_died_before_it_took_part_has_taken_no_place():
    run = Run()
    run.dead = ["engine-2"]
    run.restarts.replace("engine-0")
    await run.settles()
    assert run.told == ["engine-2 starts in place of engine-0"]


async def test_one_that_cannot_start_is_said_why_and_tried_again():
    run = Run()
    run.cluster.fail = ["engine-2", "engine-3"]
    run.restarts.replace("engine-1")
    await run.settles()
    assert run.joined == ["engine-4"]
    assert run.told[1] == "engine-2 could not start: no GPU (log: logs/engine-2.log)"


async def test_no_more_are_started_than_the_settings_allow():
    run = Run(most=2)
    run.cluster.fail = ["engine-2", "engine-3"]
    run.restarts.replace("engine-1")
    await run.settles()
    assert run.told[-1] == "engine-1 is not replaced: engine.max_restarts is 2"
    run.restarts.replace("engine-0")
    await run.settles()
    assert run.cluster.asked == ["engine-2", "engine-3"] and not run.joined
    assert run.told[-1] == "engine-0 is not replaced: engine.max_restarts is 2"


async def test_a_run_that_wants_none_says_nothing():
    run = Run(most=0)
    run.restarts.replace("engine-1")
    await run.settles()
    assert run.told == [] and run.cluster.asked == []


async def test_one_that_waits_for_a_node_is_said_so_and_joins_when_there_is_one():
    run = Run()
    run.cluster.room.clear()
    run.restarts.replace("engine-1")
    await asyncio.sleep(0.15)
    assert run.told[1:] == [
        "engine-2 has not started within 0.05 s: it waits until a node has room for it (engine.cpus, "
        "engine.gpus), or its log says why"
    ]
    run.cluster.room.set()
    await run.settles()
    assert run.joined == ["engine-2"]


async def test_a_run_that_ends_waits_for_no_engine():
    run = Run()
    run.cluster.room.clear()
    run.restarts.replace("engine-1")
    await asyncio.sleep(0.01)
    await asyncio.wait_for(run.restarts.close(), 5)
    assert run.cluster.ended == ["engine-2"] and not run.joined


async def test_an_engine_that_cannot_be_taken_in_is_for_the_run_to_know():
    async def join(name: str) -> bool:
        raise RuntimeError(f"{name} could not load version 3")

    run = Run(join=join)
    run.restarts.replace("engine-1")
    with pytest.raises(RuntimeError, match="engine-2 could not load version 3"):
        await asyncio.wait_for(run.restarts.failed(), 5)
