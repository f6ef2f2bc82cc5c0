"""Weight sync: the learner publishes a version, engines stage and load it, until it is forgotten.

The learner stops for a copy of its weights only; they are published beside its next step. Engines stage a
version while they go on generating, and stop for the change of weights only. An engine that has died is left
out, and named in `lost`; so is one that does not answer in time, which is ended first. How weights travel is
the transport's affair (`rl.fleet.weight_transport`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from rl.actors.handles import Actors
from rl.fleet.weight_transport import WeightTransport
from rl.nodes.deadline import within
from rl.nodes.nodes import reached
from rl.nodes.process import first_line
from rollout.vllm_engine import LoadTimes

T = TypeVar("T")


def _untold(name: str, sentence: str) -> None:
    """For who is told nothing."""


class SyncError(Exception):
    """A version could not be published or loaded; the message is one sentence."""


@dataclass(frozen=True)
class Publication:
    """A published version. seconds: until engines could read it. bytes: of its weights."""

    seconds: float
    bytes: int


@dataclass(frozen=True)
class SyncTimes:
    """The cost of one version on its way to the engines. snapshot: the learner stood still for its copy.

    publish: until engines could read it. staging_ms: per engine, while it generated. loads: by engine that
    changed weights.
    """

    snapshot_ms: float
    publication: Publication
    staging_ms: tuple[float, ...]
    loads: Mapping[str, LoadTimes]

    @property
    def pause_ms(self) -> tuple[float, ...]:
        """Per engine that changed weights: its requests stood still."""
        return tuple(t.pause_ms for t in self.loads.values())

    def metrics(self) -> dict[str, float]:
        """Return the metrics of a step; of the engines, the slowest one's figures."""
        return {
            "sync/snapshot_ms": self.snapshot_ms,
            "sync/publish_seconds": self.publication.seconds,
            "sync/megabytes": self.publication.bytes / 1e6,
            "sync/engines": float(len(self.loads)),
            "sync/staging_ms": max(self.staging_ms, default=0.0),
            "sync/pause_ms": max(self.pause_ms, default=0.0),
            "sync/flip_ms": max((t.swap_ms for t in self.loads.values()), default=0.0),
        }


class WeightSync:
    """Publishes, stages and loads versions under deadlines; names who failed in one sentence."""

    def __init__(
        self,
        actors: Actors,
        transport: WeightTransport,
        load_seconds: float,
        say: Callable[[str, str], None] = _untold,
    ) -> None:
        """say: hears which engine (its name, a sentence) hung and was ended."""
        self.say = say
        self.actors = actors
        self.transport = transport
        self.load_seconds = load_seconds
        # Versions that are published and not forgotten.
        self.published: set[int] = set()
        # Engines that died under a call, for who made it to take out of service.
        self.lost: set[str] = set()
        # A sentence for each of them that hung.
        self.hung: dict[str, str] = {}
        # What each engine has staged and not loaded: there is room for one version.
        self.staged: dict[str, int] = {}

    async def snapshot(self, version: int) -> float:
        """Copy the learner's present weights, called `version`. Returns milliseconds. Raises SyncError."""
        copy = self.actors.learner.snapshot.remote(version)
        return await self._learner(copy, version, "copy the weights of")

    async def publish(self, version: int) -> Publication:
        """Publish the copy of `version`. Raises SyncError."""
        start = time.perf_counter()
        size = await self._learner(self.transport.publish(version), version, "publish")
        self.published.add(version)
        return Publication(time.perf_counter() - start, size)

    async def stage(self, versions: Mapping[str, int]) -> tuple[float, ...]:
        """Have engines (name -> version) make published versions ready. Raises SyncError.

        Returns the milliseconds of each engine that had not staged its version.
        """
        due = {name: v for name, v in versions.items() if self.staged.get(name) != v}
        stage = self.transport.stage
        times = await asyncio.gather(
            *(self._engine("stage", stage, name, version) for name, version in due.items())
        )
        self.staged |= due
        return tuple(t for t in times if t is not None)

    async def load(self, versions: Mapping[str, int]) -> dict[str, LoadTimes]:
        """Bring engines (name -> version) to published versions, all at once. Raises SyncError.

        Returns the times of each engine that has loaded.
        """
        load = self.transport.load
        answers = await asyncio.gather(
            *(self._engine("load", load, name, version) for name, version in versions.items())
        )
        for name in versions:
            self.staged.pop(name, None)
        return {n: t for n, t in zip(versions, answers, strict=True) if t is not None}

    async def end_hung(self, name: str, what: str) -> None:
        """End an engine that did not do `what` in time; from here on it is one that died."""
        if name in self.hung:
            return
        why = f"{name} did not {what} within {self.load_seconds:g} s"
        self.hung[name] = why
        self.lost.add(name)
        self.say(name, f"{why}: it hangs, and is ended as if it had died")
        await self.actors.end_engine(name)

    def forget(self, versions: Collection[int]) -> None:
        """Release these versions."""
        for version in versions:
            self.published.remove(version)
            self.transport.forget(version)

    async def _learner(self, act: Awaitable[T], version: int, what: str) -> T:
        try:
            return await within(act, self.load_seconds)
        except TimeoutError:
            raise SyncError(f"the learner did not {what} version {version} in time") from None
        except Exception as error:
            why = "it died" if isinstance(error, RayActorError) else first_line(error)
            raise SyncError(f"the learner could not {what} version {version}: {why}") from None

    async def _engine(
        self, what: str, act: Callable[[str, int], Awaitable[T]], name: str, version: int
    ) -> T | None:
        """Return the engine's answer, or None where it has died."""
        try:
            return await within(reached(lambda: act(name, version)), self.load_seconds)
        except ActorDiedError as error:
            if isinstance(
                error, RayTaskError
            ):  # the node that it was to get its weights from is gone
                raise SyncError(
                    f"{name} could not {what} version {version}: the learner's node is gone"
                ) from None
            self.lost.add(name)
            return None
        except TimeoutError:
            await self.end_hung(name, f"{what} version {version}")
            return None
        except Exception as error:
            raise SyncError(
                f"{name} could not {what} version {version}: {first_line(error)}"
            ) from None
