"""Hands groups to rollout controllers and waits for them: used by training and by evaluation."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, TaskCancelledError

from rl.cluster import Actors, first_line
from rl.deadline import within
from rl.engine_pool import NotTold
from rl.group import GroupReport, GroupSpec
from rl.waiting import WaitingTable, merge

# Beyond an episode's own deadline, for judging it and for the way to and from its controller.
GROUP_GRACE_SECONDS = 120.0
# For a controller to say what its episodes wait for.
WAITING_SECONDS = 10.0


class Dispatcher:
    """Plays groups on the least busy controller."""

    def __init__(
        self,
        actors: Actors,
        max_seconds: float,
        lost: Callable[[GroupSpec, str], None],
        announce: Callable[[], Awaitable[None]],
    ) -> None:
        """`max_seconds`: an episode's own limit. `lost(spec, why)` is told of groups that are lost.
        `announce()` tells all controllers which engine serves what."""
        self.controllers = actors.controllers
        self.limit = max_seconds + GROUP_GRACE_SECONDS
        self.lost = lost
        self.announce = announce
        self.busy: Counter[str] = Counter(dict.fromkeys(self.controllers, 0))
        self.playing: dict[str, Any] = {}

    async def play(self, spec: GroupSpec) -> tuple[GroupReport, Any] | None:
        """A group's report, and a reference to its samples.

        None where it was given up, and where the controller died or did not answer; Ray starts it anew.
        """
        name = min(self.busy, key=lambda c: self.busy[c])
        self.busy[name] += 1
        try:
            return await within(self._played(spec, name), self.limit)
        except TaskCancelledError:
            return None
        except (TimeoutError, RayActorError, OutOfMemoryError) as error:
            ray.cancel(self.playing[spec.id])
            self.lost(spec, f"{name}: {first_line(error)}")
            return None
        finally:
            self.busy[name] -= 1
            del self.playing[spec.id]

    async def _played(self, spec: GroupSpec, name: str) -> tuple[GroupReport, Any]:
        play = self.controllers[name].play.options(num_returns=2)
        while True:
            self.playing[spec.id], samples = play.remote(spec)
            try:
                return await self.playing[spec.id], samples
            except NotTold:
                await self.announce()

    def give_up(self, group: str) -> None:
        """Stop playing a group; its requests end too."""
        if group in self.playing:
            ray.cancel(self.playing[group])

    def cancel(self) -> None:
        """Give up every group in progress."""
        for group in self.playing:
            self.give_up(group)

    async def waiting(self, count: int) -> WaitingTable:
        """What the episodes in progress wait for: the `count` most suspicious ones, and all in numbers.

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
