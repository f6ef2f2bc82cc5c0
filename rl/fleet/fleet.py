"""The fleet: carries out what `rollout.scheduler` decides about versions and engines.

Owns the version window and which engine serves which version. A rebalance asks the controllers where
their trajectories are, decides, and then, in this order: has the engines that change version stage it,
closes them, moves their requests, loads the weights, opens them again. One rebalance at a time. Engines that
are likely to change version stage it as soon as it is published, so that a rebalance seldom waits for that.

An engine that has died leaves the fleet (`lose`), and the others go on; the last one's death is a SyncError.
One that was started in its place (`join`) gets turns once it has loaded the newest version. Where only one
version lives at a time no file of it is left by then, and the engine waits for the next one.

With a layout in which the learner uses engines' devices (`shared_engines`), those sleep while it steps. What
they hold moves to engines that stay where some serve its version, and waits in its place where none does.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from ray.exceptions import ActorDiedError, RayActorError, RayError

from rl.actors.actor_method import Handle
from rl.actors.controller import ControllerActor
from rl.actors.engine import EngineActor
from rl.actors.handles import Actors
from rl.fleet.cache_pressure import CachePressure
from rl.fleet.engine_events import EngineSpans, Record, unrecorded
from rl.fleet.weight_sync import SyncError, SyncTimes, WeightSync
from rl.nodes.deadline import within
from rl.nodes.nodes import reached
from rl.nodes.process import first_line
from rollout.placement import EngineState, InProgress, Placement
from rollout.scheduler import Backlog, Limits, Trigger, admission, decide, trigger
from rollout.vllm_engine import LoadTimes
from rollout.window import Rules, Window, publish

T = TypeVar("T")


@dataclass(frozen=True)
class Changes:
    """The engines' part of a rebalance: their staging times (ms), and the times of each that changed
    weights."""

    staging_ms: tuple[float, ...] = ()
    loads: Mapping[str, LoadTimes] = field(default_factory=dict[str, LoadTimes])


class Groups(Protocol):
    """The groups in flight and buffered, as the fleet sees them."""

    def backlog(self, window: Window) -> Backlog:
        """Where the run stands; asked in the turn in which a decision is made."""
        ...

    def evict(self, versions: Sequence[int]) -> None:
        """Give up everything in flight on these versions; it is to begin anew."""
        ...


class Fleet:
    """Engines, versions and weights of one run."""

    def __init__(
        self,
        actors: Actors,
        sync: WeightSync,
        rules: Rules,
        limits: Limits,
        groups: Groups,
        shared_engines: Sequence[str] = (),
        *,
        adapters: bool = False,
        first: int = 0,
        record: Record = unrecorded,
    ) -> None:
        """shared_engines: engines whose devices the learner uses while it steps. adapters: a version is an
        adapter, not the whole weights. first: the version that the learner has; engines start on weights that
        they call 0. record: writes down spans of what engines did.
        """
        self.actors = actors
        self.sync = sync
        self.rules = rules
        self.limits = limits
        self.groups = groups
        self.shared_engines = tuple(shared_engines)
        self.adapters = adapters
        self.asleep: frozenset[str] = frozenset()
        self.first = first
        self.window = Window((first,))
        self.serves: dict[str, int | None] = dict.fromkeys(actors.engines, first)
        # Engines that have died.
        self.gone: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.pressure = CachePressure()
        self.rebalanced = time.monotonic()
        self.spans = EngineSpans(record)
        self.lock = asyncio.Lock()

    async def start(self) -> None:
        """Tell the controllers who serves what; keep the first version where engines may come back to it.

        Adapters are loaded from the first version on: a request that begins without one would go on without.
        So is the version of a run that goes on: its engines start on the weights that the run began with.
        """
        async with self.lock:
            if self.rules.live > 1 or self.adapters or self.first:
                await self.sync.snapshot(self.first)
                await self.sync.publish(self.first)
            if self.adapters or self.first:
                await self.sync.load(dict.fromkeys(self.serves, self.first))
                await self._take_out(self.sync.lost)
            await self._push_engine_map()
            self.spans.serve(dict.fromkeys(self.serves, self.first))
            self.spans.window(self.window.versions)

    async def push_engine_map(self) -> None:
        """Tell every controller which engine serves which version, between two rebalances."""
        async with self.lock:
            await self._push_engine_map()

    async def _push_engine_map(self) -> None:
        versions = dict(self._awake())
        await self._ask_all("serve", lambda controller: controller.serve.remote(versions))

    def _awake(self) -> Iterator[tuple[str, int | None]]:
        """Every engine with the version that it serves; None where it sleeps, or changes."""
        for name, version in self.serves.items():
            yield name, None if name in self.asleep else version

    async def sleep_shared(self) -> None:
        """The learner is about to step: engines on its devices give them up. Raises SyncError."""
        if not self.shared_engines:
            return
        async with self.lock:
            self.asleep = frozenset(self.shared_engines)
            await self._push_engine_map()
            await self._rebalance("switch")
            self.spans.sleep(self.shared_engines)
            await self._switch("sleep", lambda engine: engine.sleep.remote())

    async def wake_shared(self) -> None:
        """The learner has stepped. Raises SyncError."""
        if not self.shared_engines:
            return
        async with self.lock:
            await self._switch("wake", lambda engine: engine.wake.remote())
            self.spans.wake()
            self.asleep = frozenset()
            await self._push_engine_map()

    async def lose(self, names: Collection[str]) -> None:
        """Take engines that have died out of the fleet. Raises SyncError where none is left."""
        self.gone.update(names)
        if not any(name in self.serves for name in names):
            return
        async with self.lock:
            await self._take_out(names)
            # What they held, of whatever version, goes on elsewhere.
            await self._rebalance("lost")

    async def pulse(self, name: str) -> None:
        """Wait until an engine answers; one that does not in time is ended, as if it had died.

        Raises RayError where it is dead, or cannot be reached now."""
        try:
            await within(self.actors.engines[name].pulse.remote(), self.sync.load_seconds)
        except TimeoutError:
            await self.sync.end_hung(name, "answer")

    async def join(self, name: str) -> bool:
        """An engine that was started in place of another one; it holds no version of the run yet.

        Returns whether it takes part: False where it has died already.
        """
        async with self.lock:
            if name in self.gone:
                return False
            self.serves[name] = None
            self.counts["engines_joined"] += 1
            await self._take_in()
            if self.serves.get(name) is not None:
                await self._rebalance("joined")
            return name in self.serves

    async def _take_in(self) -> None:
        """Engines that hold no version load the newest, where its file is there."""
        new = [name for name, version in self.serves.items() if version is None]
        if self.window.newest in self.sync.published:
            await self._load(dict.fromkeys(new, self.window.newest))

    async def _take_out(self, names: Collection[str]) -> None:
        gone = sorted(name for name in names if name in self.serves)
        if not gone:
            return
        for name in gone:
            del self.serves[name]
        self.counts["engines_lost"] += len(gone)
        self.spans.lost(gone)
        self.shared_engines = tuple(name for name in self.shared_engines if name in self.serves)
        self.asleep &= self.serves.keys()
        if all(version is None for version in self.serves.values()):
            how = "; ".join(self.sync.hung.get(name, f"{name} died") for name in gone)
            raise SyncError(f"no engine is left: {how}")
        await self._ask_all("lose", lambda controller: controller.lose.remote(gone))

    async def _switch(
        self, what: str, act: Callable[[Handle[EngineActor]], Awaitable[None]]
    ) -> None:
        limit = self.sync.load_seconds

        async def switch(name: str) -> None:
            try:
                await within(act(self.actors.engines[name]), limit)
            except ActorDiedError:
                self.sync.lost.add(name)
            except TimeoutError:
                await self.sync.end_hung(name, what)
            except RayError as error:
                raise SyncError(f"{name} could not {what}: {first_line(error)}") from None

        await asyncio.gather(*map(switch, self.shared_engines))
        await self._take_out(self.sync.lost)

    async def publish(self, version: int, snapshot_ms: float) -> SyncTimes:
        """Publish `version`, have it staged, and rebalance.

        snapshot_ms: what the learner's copy of it took (`WeightSync.snapshot`).
        """
        publication, likely = await asyncio.gather(
            self.sync.publish(version), self._likely(version)
        )
        staged = await self.sync.stage(likely)
        async with self.lock:
            await self._take_out(self.sync.lost)
            self.window = publish(self.window, version)
            changes = await self._rebalance("step")
        return SyncTimes(snapshot_ms, publication, staged + changes.staging_ms, changes.loads)

    async def _likely(self, version: int) -> dict[str, int]:
        """Engines that will take `version`: those of a rebalance now, or else those that drain next."""
        awake = self._states()
        window = publish(self.window, version)
        if self.rules.live == 1 or not awake:
            return {engine.name: version for engine in awake}
        places = await self._in_progress()
        backlog = self.groups.backlog(window)
        decision = decide(backlog, awake, places, self.rules, self.limits)
        if decision.window == window:
            return {e.name: version for e in awake if e.version == window.versions[0]}
        return {m.engine: version for m in decision.placement.weights if m.version == version}

    def due(self) -> Trigger | None:
        """Say why a rebalance is due, but for the end of a step; where one version lives none ever is."""
        if self.rules.live == 1:
            return None
        return trigger(
            self.limits,
            step_ended=False,
            cache_usage=self.pressure.usage(one.name for one in self._states()),
            idle_seconds=time.monotonic() - self.rebalanced,
        )

    async def rebalance(self, why: str) -> None:
        """Rebalance for another reason than a step."""
        async with self.lock:
            await self._rebalance(why)

    async def settle(self) -> None:
        """Bring every engine to the newest version there is; nothing may be in progress."""
        async with self.lock:
            newest = self.window.newest if self.window.pending is None else self.window.pending
            self.window = Window((newest,))
            self.spans.window(self.window.versions)
            held = {name: version for name, version in self.serves.items() if version is not None}
            await self._load({name: newest for name, v in held.items() if v != newest})
            await self._take_in()
            self._forget()

    def admit(self) -> dict[int, int]:
        """Groups that may begin, per version."""
        if self.asleep and all(version is None for _, version in self._awake()):
            return {}
        return admission(self.groups.backlog(self.window), self.rules, self.limits)

    def served(self, version: int) -> bool:
        """True if some engine serves the version."""
        return self.rules.in_place or version in dict(self._awake()).values()

    @property
    def expects_version(self) -> bool:
        """True while a version of the learner's is on its way to the window.

        What no engine serves waits for it rather than have one load the version before.
        """
        made = self.groups.backlog(self.window).learner_version
        return made > max(self.window.newest, self.window.pending or 0)

    def _states(self) -> list[EngineState]:
        """States of the engines that are awake and hold a version."""
        room = self.limits.engine_limit
        return [
            EngineState(name, version, room)
            for name, version in self.serves.items()
            if name not in self.asleep and version is not None
        ]

    async def _rebalance(self, why: str) -> Changes:
        if not self._states():
            return Changes()
        self.counts[f"rebalances/{why}"] += 1
        self.rebalanced = time.monotonic()
        before, places = self.window, await self._in_progress()
        backlog = self.groups.backlog(self.window)
        decision = decide(backlog, self._states(), places, self.rules, self.limits)
        self.window = decision.window
        self.spans.window(self.window.versions)
        if decision.evicted:
            self.groups.evict(decision.evicted)
        changes = Changes()
        if not self.rules.in_place:
            changes = await self._carry_out(decision.placement)
        elif self.window != before:
            changes = await self._load(dict.fromkeys(self.serves, self.window.newest))
        await self._take_in()
        self._forget()
        return changes

    async def _in_progress(self) -> list[InProgress]:
        if self.rules.in_place:
            return []
        answers = await self._ask_all("in_progress", lambda c: c.in_progress.remote())
        return [one for answer in answers for one in answer or ()]

    async def _carry_out(self, placement: Placement) -> Changes:
        swaps = {move.engine: move.version for move in placement.weights}
        moves = {move.id: move.target for move in placement.requests if move.source}
        self.counts["weight_moves"] += len(swaps)
        self.counts["request_moves"] += len(moves)
        staged = await self.sync.stage(swaps)
        await self._take_out(self.sync.lost)
        swaps = {name: version for name, version in swaps.items() if name in self.serves}
        # Where the target has died, the next rebalance finds another one.
        moves = {id: target for id, target in moves.items() if target in self.serves}
        closed = time.time()
        if swaps or moves:
            for name in swaps:
                self.serves[name] = None
            leaving = list(swaps)
            await self._ask_all("leave", lambda c: c.leave.remote(leaving, moves))
        return await self._load(swaps, closed, staged)

    async def _load(
        self,
        versions: Mapping[str, int],
        closed: float | None = None,
        staged: tuple[float, ...] = (),
    ) -> Changes:
        """Load versions (by engine) and say who serves what.

        closed: since when these engines get no turns (unix seconds); None: they do until they load. staged:
        the staging times so far (ms).
        """
        if not versions:
            return Changes(staged)
        start = time.time() if closed is None else closed
        loads = await self.sync.load(versions)
        self.serves |= versions
        await self._take_out(self.sync.lost)
        await self._push_engine_map()
        # One may have died since it has loaded.
        alive = {n: (versions[n], t.pause_ms) for n, t in loads.items() if n in self.serves}
        self.spans.loaded(alive, start)
        # An engine that had not staged its version has done so to load it.
        late = tuple(t.staging_ms for t in loads.values() if t.staging_ms)
        return Changes(staged + late, loads)

    def _forget(self) -> None:
        """Remove weights that no engine will load any more."""
        keep = {self.window.pending}
        if self.rules.live > 1 or set(self.serves.values()) != {self.window.newest}:
            keep |= set(self.window.versions)
        # Newer ones are on their way into the window.
        gone = {v for v in self.sync.published if v <= self.window.newest and v not in keep}
        self.sync.forget(gone)

    async def _ask_all(
        self, what: str, act: Callable[[Handle[ControllerActor]], Awaitable[T]]
    ) -> list[T | None]:
        """Ask all controllers at once. Raises SyncError."""
        controllers = self.actors.controllers.values()
        return await asyncio.gather(*(self._ask(what, act, one) for one in controllers))

    async def _ask(
        self,
        what: str,
        act: Callable[[Handle[ControllerActor]], Awaitable[T]],
        controller: Handle[ControllerActor],
    ) -> T | None:
        """A controller's answer; None where it died. Ray starts it anew, with nothing in progress.

        Moving thousands of requests takes its time: it has as long as an engine has to load.
        """
        limit = self.sync.load_seconds
        try:
            return await within(reached(lambda: act(controller)), limit)
        except RayActorError:
            return None
        except TimeoutError:
            raise SyncError(
                f"a rollout controller did not answer within {limit:g} s (asked to {what})"
            ) from None
