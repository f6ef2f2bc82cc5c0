"""Watches the nodes of a run: says which one is gone and what was on it; dead engines leave the fleet.

An engine that hangs, whatever the run does meanwhile, is ended and is then a dead one.

Hosts and controllers start anew on another node by themselves (Ray does that). In place of an engine another
one may be started (`rl.fleet.engine_restarts`); the run goes on with those that are left. Without its learner
it cannot.
"""

import asyncio
import time
from collections.abc import Collection
from typing import Protocol

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from rl.actors.handles import Actors
from rl.nodes.deadline import in_daemon, within
from rl.nodes.nodes import alive_nodes, ask_node, control_answers

LOOK_SECONDS = 2.0
# Ray's control service is gone once nobody has listened at its address for so long. Ray itself ends the
# process without a word after 60 s. On a cluster the service may be started anew by then.
CONTROL_SECONDS, CLUSTER_CONTROL_SECONDS = 2.0, 30.0
# Or once it has been silent for so long: a busy machine makes it so for seconds.
SILENT_SECONDS = 45.0
# For Ray's control service to say which nodes there are.
ANSWER_SECONDS = 60.0
# For it to notice that a node is gone; its own settings say 25 s or so.
NOTICE_SECONDS = 60.0


class NodesLost(Exception):
    """The run cannot go on without what was on a node; the message is one sentence."""


class ControlLost(NodesLost):
    """Ray's control service is gone: nothing can be asked of Ray any more."""


def control_seconds(cluster: str) -> float:
    """Seconds for which Ray's control service may be away; cluster: `cluster.address`."""
    return CONTROL_SECONDS if cluster == "local" else CLUSTER_CONTROL_SECONDS


async def watch_control(address: str, seconds: float) -> None:
    """Raise ControlLost once Ray's control service (GCS) at host:port is gone: without it Ray ends this
    process. address: "" where it is not watched. seconds: for which it may be away."""
    heard = time.monotonic()
    refused = 0  # times in a row
    while address:
        await asyncio.sleep(min(LOOK_SECONDS, seconds))
        answer = await control_answers(address, LOOK_SECONDS)
        if answer == "answers":
            heard = time.monotonic()
        refused = refused + 1 if answer == "refuses" else 0
        away = time.monotonic() - heard
        if (refused > 1 and away > seconds) or away > SILENT_SECONDS:
            raise ControlLost(
                f"Ray's control service (GCS at {address}) is gone: it died or was killed; "
                "without it the run cannot go on"
            )
    await asyncio.Event().wait()


class Engines(Protocol):
    """The engines in service."""

    async def lose(self, names: Collection[str]) -> None:
        """Take these, which have died, out of service. Raises where none is left."""
        ...

    async def pulse(self, name: str) -> None:
        """Wait for an engine's answer; end one that hangs. Raises RayError where it is dead."""
        ...


class Replacements(Protocol):
    """New engines in place of dead ones."""

    def replace(self, lost: str) -> None:
        """Start an engine in place of `lost`, where that may be."""
        ...


class Says(Protocol):
    """A journal of what happens to nodes and actors."""

    def say(self, what: str, sentence: str) -> None:
        """Tell the user what has happened to `what`."""
        ...


class NodeWatch:
    """Watches the actors of one run."""

    def __init__(
        self,
        actors: Actors,
        fleet: Engines,
        restarts: Replacements,
        journal: Says,
        control: str = "",
        control_seconds: float = CONTROL_SECONDS,
    ) -> None:
        """control: host:port of Ray's control service, "" where it is not watched. control_seconds: for which
        it may be away."""
        self._control: asyncio.Task[None] | None = None
        self.control = control
        self.control_seconds = control_seconds
        self.actors = actors
        self.fleet = fleet
        self.restarts = restarts
        self.journal = journal
        self.gone: set[str] = set()
        self._asked: dict[str, asyncio.Future[str]] = {}
        self._moving: set[str] = set()
        self._looking = asyncio.Lock()
        self._end: NodesLost | None = None

    async def watch(self) -> None:
        """Look again and again. Raises NodesLost, and SyncError where no engine is left."""
        control = self._control = asyncio.create_task(
            watch_control(self.control, self.control_seconds)
        )
        try:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                await self.look()
        finally:
            control.cancel()
            await asyncio.gather(control, return_exceptions=True)
            for asked in self._asked.values():
                asked.cancel()
            await asyncio.gather(*self._asked.values(), return_exceptions=True)

    async def look(self) -> None:
        """Check that the nodes of the run's actors, and its engines, are there. Raises as `watch`."""
        if not self.actors.node_of:
            return
        async with self._looking:
            if self._end is not None:
                raise self._end
            alive = await self._alive()
            self.actors.addresses |= alive
            for node in {*self.actors.node_of.values()} - alive.keys() - self.gone:
                await self._lost(node)
            await self._ask()

    async def _alive(self) -> dict[str, str]:
        """Addresses of the living nodes. Raises ControlLost as soon as nobody will tell them any more."""
        asked = in_daemon(alive_nodes)
        first = {asked} if self._control is None else {asked, self._control}
        await asyncio.wait(first, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if self._control is not None and self._control.done():
            self._control.result()
        return await within(asked, 0)

    async def explain(self, error: RayError) -> None:
        """Raises as `watch` where a node that is gone is what `error` comes from.

        For some seconds Ray knows only that an actor cannot be reached.
        """
        deadline = time.monotonic() + NOTICE_SECONDS
        await self.look()
        while isinstance(error, ActorUnavailableError) and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def _lost(self, node: str) -> None:
        self.gone.add(node)
        places, address = self.actors.node_of, self.actors.addresses.get(node, node)
        names = sorted(name for name, at in places.items() if at == node)
        sentence = f"node {address} is gone: {', '.join(names)}"
        self.journal.say(f"node {address}", sentence)
        if any(name.startswith("learner") for name in names):
            self._end = NodesLost(f"{sentence}; without its learner the run cannot go on")
            raise self._end
        engines = [name for name in names if name in self.actors.engines]
        self._moving.update(name for name in names if name not in engines)
        for name in names:
            del places[name]
        await self._lose(engines)

    async def _lose(self, engines: Collection[str]) -> None:
        await self.fleet.lose(engines)
        for engine in engines:
            self.restarts.replace(engine)

    async def _ask(self) -> None:
        """Ask engines whether they live, and what starts anew elsewhere where it is; take what was answered
        by now."""
        actors = self.actors.hosts | self.actors.controllers
        engines = [name for name in self.actors.engines if name in self.actors.node_of]
        for name in (*engines, *self._moving):
            asked = self._asked.get(name)
            if asked is None:
                question = ask_node(actors[name]) if name in actors else self._pulse(name)
                self._asked[name] = asyncio.ensure_future(question)
            elif asked.done():
                del self._asked[name]
                await self._heard(name, asked)

    async def _pulse(self, engine: str) -> str:
        """Wait until an engine has answered or was ended; returns its node."""
        node = self.actors.node_of[engine]
        await self.fleet.pulse(engine)
        return node

    async def _heard(self, name: str, answer: asyncio.Future[str]) -> None:
        try:
            node = answer.result()
        except ActorDiedError:
            if name in self.actors.engines:
                del self.actors.node_of[name]
                self.journal.say(name, f"{name} died; its log says why")
                await self._lose([name])
        except RayError:  # not to be reached now; asked again
            return
        else:
            if name in self._moving and node not in self.gone:
                self._moving.discard(name)
                self.actors.node_of[name] = node
                where = self.actors.addresses.get(node, node)
                self.journal.say(name, f"{name} was started anew on node {where}")
