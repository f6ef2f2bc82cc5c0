"""The watch over nodes: what it says, which engines leave the fleet, and when the run cannot go on."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import Remote
from ray.exceptions import ActorDiedError, ActorUnavailableError

from rl.actors.handles import Actors, by_node
from rl.fleet import node_watch
from rl.fleet.node_watch import NodesLost, NodeWatch

NODES = {"a": "10.0.0.5", "b": "10.0.0.7"}


class Handle:
    """An actor that says where it is, or fails to."""

    def __init__(self, node: Any) -> None:
        self.node = node
        self.__ray_call__ = Remote(self._call)

    async def _call(self, act: Any) -> str:
        if isinstance(self.node, Exception):
            raise self.node
        return self.node


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The nodes that Ray says are alive."""
    there = dict(NODES)
    monkeypatch.setattr(node_watch, "alive_nodes", lambda: dict(there))
    return there


class Run:
    """Two nodes: learner, controller, engine-0 and host-0 on a, engine-1 and host-1 on b."""

    def __init__(self, learner: str = "a") -> None:
        self.handles = {
            name: Handle(node)
            for name, node in {
                "engine-0": "a",
                "engine-1": "b",
                "host-0": "a",
                "host-1": "b",
                "controller-0": "a",
            }.items()
        }
        kinds = {
            kind: {n: h for n, h in self.handles.items() if n.startswith(kind)}
            for kind in ("engine", "host", "controller")
        }
        places = {"learner": learner, **{name: h.node for name, h in self.handles.items()}}
        self.actors = Actors(
            SimpleNamespace(),
            kinds["engine"],
            kinds["host"],
            kinds["controller"],
            node_of=places,
            addresses=dict(NODES),
        )
        self.lost: list[str] = []
        self.told: list[tuple[str, str]] = []
        self.replaced: list[str] = []
        self.watch = NodeWatch(
            self.actors,
            SimpleNamespace(lose=self._lose, pulse=self._pulse),
            SimpleNamespace(replace=self.replaced.append),
            SimpleNamespace(say=lambda *said: self.told.append(said)),
        )

    async def _lose(self, engines: Any) -> None:
        self.lost += engines

    async def _pulse(self, name: str) -> None:
        await self.handles[name].__ray_call__.remote(None)

    async def looks(self, times: int = 3) -> None:
        for _ in range(times):
            await self.watch.look()
            # What it has asked is answered in the turns of the event loop between two looks.
            if self.watch._asked:
                await asyncio.wait(self.watch._asked.values())


async def test_while_all_nodes_are_there_nothing_is_said(alive):
    run = Run()
    await run.looks()
    assert (run.told, run.lost) == ([], [])
    assert by_node(run.actors) == {
        "10.0.0.5": ["controller-0", "engine-0", "host-0", "learner"],
        "10.0.0.7": ["engine-1", "host-1"],
    }


async def test_a_node_that_is_gone_is_one_sentence_and_what_starts_anew_is_another(alive):
    run = Run()
    del alive["b"]
    run.handles["host-1"].node = ActorUnavailableError("it is restarting", b"0" * 16)
    await run.looks()
    sentence = "node 10.0.0.7 is gone: engine-1, host-1"
    assert run.told == [("node 10.0.0.7", sentence)]
    assert run.lost == run.replaced == ["engine-1"]
    assert "10.0.0.7" not in by_node(run.actors)
    run.handles["host-1"].node = "a"
    await run.looks()
    assert [said for _, said in run.told] == [sentence, "host-1 was started anew on node 10.0.0.5"]
    assert "host-1" in by_node(run.actors)["10.0.0.5"]
    await run.looks()
    assert len(run.told) == 2, "each is told once"


async def test_a_node_that_came_later_has_its_address(alive):
    run = Run()
    alive["c"] = "10.0.0.9"
    del alive["b"]
    run.handles["host-1"].node = "c"
    await run.looks()
    assert run.told[-1] == ("host-1", "host-1 was started anew on node 10.0.0.9")


async def test_an_engine_that_dies_alone_is_not_taken_for_its_node(alive):
    run = Run()
    run.handles["engine-1"].node = ActorDiedError()
    await run.looks()
    assert run.told == [("engine-1", "engine-1 died; its log says why")]
    assert run.lost == run.replaced == ["engine-1"]


async def test_without_its_learner_the_run_cannot_go_on(alive):
    run = Run(learner="b")
    del alive["b"]
    with pytest.raises(NodesLost) as caught:
        await run.watch.look()
    assert str(caught.value) == (
        "node 10.0.0.7 is gone: engine-1, host-1, learner; without its learner the run cannot go on"
    )
    assert run.told[0][1] == "node 10.0.0.7 is gone: engine-1, host-1, learner"


async def test_an_actor_out_of_reach_is_explained_once_ray_knows_that_its_node_is_gone(
    alive, monkeypatch
):
    monkeypatch.setattr(node_watch, "LOOK_SECONDS", 0.001)
    run = Run(learner="b")
    away = ActorUnavailableError("RPC error: Socket closed", b"0" * 16)
    explaining = asyncio.create_task(run.watch.explain(away))
    await asyncio.sleep(0.05)
    assert not explaining.done(), "the node may be there"
    del alive["b"]
    with pytest.raises(NodesLost, match=r"node 10\.0\.0\.7 is gone: .* without its learner"):
        await explaining
    with pytest.raises(NodesLost):
        await run.watch.explain(ActorDiedError())


async def test_an_error_of_a_learner_whose_node_is_there_is_its_own(alive, monkeypatch):
    monkeypatch.setattr(node_watch, "NOTICE_SECONDS", 0.0)
    run = Run()
    await run.watch.explain(ActorDiedError())
    await run.watch.explain(ActorUnavailableError("RPC error", b"0" * 16))
    assert run.told == []


async def test_without_rays_control_service_the_run_cannot_go_on(alive, monkeypatch):
    monkeypatch.setattr(node_watch, "LOOK_SECONDS", 0.01)
    run = Run()
    service = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = service.sockets[0].getsockname()[1]
    run.watch.control, run.watch.control_seconds = f"127.0.0.1:{port}", 0.05
    watching = asyncio.create_task(run.watch.watch())
    await asyncio.sleep(0.15)
    assert not watching.done(), "it listens"
    service.close()
    sentence = rf"Ray's control service \(GCS at 127.0.0.1:{port}\) is gone"
    with pytest.raises(NodesLost, match=sentence):
        await asyncio.wait_for(watching, 5)


async def test_a_control_service_that_is_silent_on_a_busy_machine_is_not_gone(alive, monkeypatch):
    monkeypatch.setattr(node_watch, "LOOK_SECONDS", 0.01)
    asked: list[str] = []

    async def answers(address: str, seconds: float) -> str:
        asked.append(address)
        return "refuses" if len(asked) % 10 == 0 else "silent"

    monkeypatch.setattr(node_watch, "control_answers", answers)
    run = Run()
    run.watch.control, run.watch.control_seconds = "127.0.0.1:1", 0.02
    watching = asyncio.create_task(run.watch.watch())
    while len(asked) < 30:
        await asyncio.sleep(0.01)
    assert not watching.done()
    monkeypatch.setattr(node_watch, "SILENT_SECONDS", 0.1)
    with pytest.raises(NodesLost, match="is gone"):
        await asyncio.wait_for(watching, 5)
