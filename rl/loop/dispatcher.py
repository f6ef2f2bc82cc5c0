"""Hands groups to rollout controllers and waits for them: used by training and by evaluation."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import ray
from ray import ObjectRef
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, TaskCancelledError

from rl.actors.engine_client import EngineMapMissing
from rl.actors.handles import Actors
from rl.nodes.deadline import within
from rl.nodes.process import first_line
from rl.record.waiting import WaitingTable, merge
from rl.samples.group import GroupReport, GroupSpec

# Beyond a group's own deadline, for judging it and for the way to and from its controller.
GROUP_GRACE_SECONDS = 120.0
# For a controller to say what its episodes wait for, or that it is there.
WAITING_SECONDS = 10.0
# Between two tries to reach a controller.
REACH_SECONDS = 0.5


@dataclass(frozen=True)
class Played:
    """A group that was played: its report, and a reference to its samples, a `list[TrainSample]`."""

    report: GroupReport
    samples: object


@dataclass(frozen=True)
class Lost:
    """A group whose controller died or did not answer; Ray starts the controller anew.

    told: another group was lost by the same death, and its loss has been told."""

    why: str
    told: bool = False


class EngineMap(Protocol):
    """The map of which engine serves what."""

    async def push_engine_map(self) -> None:
        """Send the map to every controller."""
        ...


class Dispatcher:
    """Plays groups on the least busy controller that answers."""

    def __init__(
        self,
        actors: Actors,
        fleet: EngineMap,
        max_seconds: float,
        crash: Callable[[str], str] = lambda controller: "",
    ) -> None:
        """fleet: sends the map to a controller that has none. max_seconds: a group's own limit.

        crash: says what ended a controller that has died, where that is known.
        """
        self.crash = crash
        self.controllers = actors.controllers
        self.limit = max_seconds + GROUP_GRACE_SECONDS
        self.fleet = fleet
        self.busy: Counter[str] = Counter(dict.fromkeys(self.controllers, 0))
        self.playing: dict[str, ObjectRef[GroupReport] | None] = {}
        # Controllers that died or cannot be reached, with who waits for each to answer again.
        self.away: dict[str, asyncio.Task[None]] = {}

    async def play(self, spec: GroupSpec) -> Played | Lost | None:
        """Play a group to its end; None where it was given up. Cancelled, it ends the group's episodes."""
        self.playing[spec.id] = None
        name = ""
        try:
            async with asyncio.timeout(self.limit):
                name = await self._choose()
                return await self._played(spec, name)
        except TaskCancelledError:
            return None
        except asyncio.CancelledError:
            self._cancel(spec.id)
            raise
        except TimeoutError:
            self._cancel(spec.id)
            return Lost(f"{name or 'no controller'}: no answer within {self.limit:g} s")
        except (RayActorError, OutOfMemoryError) as error:
            self._cancel(spec.id)
            told = name in self.away
            self._set_aside(name)
            return Lost(f"{name}: {self._why(name, error)}", told)
        finally:
            self.playing.pop(spec.id, None)

    def _why(self, name: str, error: RayError) -> str:
        if not isinstance(error, RayActorError):
            return first_line(error)
        crash = self.crash(name)
        how = f"{crash} has ended it" if crash else "it died or is out of reach"
        return f"{how}, and it is started anew; what it played is lost"

    async def _choose(self) -> str:
        while len(self.away) == len(self.controllers):
            await asyncio.wait(self.away.values(), return_when=asyncio.FIRST_COMPLETED)
        there = [name for name in self.controllers if name not in self.away]
        return min(there, key=lambda name: self.busy[name])

    async def _played(self, spec: GroupSpec, name: str) -> Played:
        play = self.controllers[name].play
        self.busy[name] += 1
        try:
            while spec.id in self.playing:
                report, samples = play.remote(spec)
                self.playing[spec.id] = report
                try:
                    return Played(await report, samples)
                except EngineMapMissing:
                    await self.fleet.push_engine_map()
            raise TaskCancelledError
        finally:
            self.busy[name] -= 1

    def _set_aside(self, name: str) -> None:
        """Groups would fail there one after the other: none until it answers."""
        if name not in self.away:
            self.away[name] = asyncio.create_task(self._reach(name))

    async def _reach(self, name: str) -> None:
        while True:
            try:
                await within(self.controllers[name].heartbeat.remote(), WAITING_SECONDS)
            except (TimeoutError, RayError):
                await asyncio.sleep(REACH_SECONDS)
            else:
                del self.away[name]
                return

    def _cancel(self, group: str) -> None:
        if (report := self.playing.get(group)) is not None:
            ray.cancel(report)  # pyright: ignore[reportUnknownMemberType]

    def give_up(self, group: str) -> None:
        """Stop playing a group; its requests end too."""
        self._cancel(group)
        # Also drops a group that still waits for a controller.
        self.playing.pop(group, None)

    def cancel(self) -> None:
        """Give up every group in progress."""
        for group in list(self.playing):
            self.give_up(group)

    async def waiting(self, count: int) -> WaitingTable:
        """Ask what the episodes in progress wait for: the `count` most suspicious ones, and all in numbers.

        A controller that does not answer is named.
        """
        answers = await asyncio.gather(
            *(
                within(controller.waiting.remote(count), WAITING_SECONDS)
                for controller in self.controllers.values()
            ),
            return_exceptions=True,
        )
        tables = dict(zip(self.controllers, answers, strict=True))
        silent = tuple(n for n, table in tables.items() if not isinstance(table, WaitingTable))
        merged = merge([a for a in answers if isinstance(a, WaitingTable)], count)
        return replace(merged, silent=silent)
