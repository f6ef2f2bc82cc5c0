"""Weight sync: the learner publishes a version, engines load it; its file lives until it is forgotten.

The learner stops for a snapshot only; the file is written beside its next step. Engines stage a file while
they go on generating, and stop for the change of weights only. An engine that has died is left out, and named
in `lost`; where its file lies on other nodes is `rl.fleet.replicas`'s.
"""

import asyncio
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import ActorDiedError, RayTaskError

from rl.actors.handles import Actors
from rl.fleet.replicas import WeightReplicas
from rl.nodes.deadline import within
from rl.nodes.nodes import reached
from rl.nodes.process import first_line


class SyncError(Exception):
    """A version could not be published or loaded; the message is one sentence."""


@dataclass(frozen=True)
class SyncTimes:
    """One weight sync. snapshot: the learner stood still. publish: until the file was there.

    Per engine, in ms. staging: making the weights ready while it generated. pause: its requests stood
    still, of `loaded`. swap: the part of the pause that changed weights.
    """

    snapshot_ms: float = 0.0
    publish_seconds: float = 0.0
    bytes: int = 0
    staging_ms: tuple[float, ...] = ()
    pause_ms: tuple[float, ...] = ()
    swap_ms: tuple[float, ...] = ()
    loaded: tuple[str, ...] = ()

    def metrics(self) -> dict[str, float]:
        """As a step's metrics; of the engines, the slowest one's figures."""
        return {
            "sync/snapshot_ms": self.snapshot_ms,
            "sync/publish_seconds": self.publish_seconds,
            "sync/megabytes": self.bytes / 1e6,
            "sync/engines": float(len(self.pause_ms)),
            "sync/staging_ms": max(self.staging_ms, default=0.0),
            "sync/pause_ms": max(self.pause_ms, default=0.0),
            "sync/flip_ms": max(self.swap_ms, default=0.0),
        }


class WeightSync:
    """Publishes into one folder; engines load from it."""

    def __init__(self, actors: Actors, folder: Path, load_seconds: float) -> None:
        self.actors = actors
        self.replicas = WeightReplicas(folder, actors.home, actors.stores)
        self.load_seconds = load_seconds
        self.files: dict[int, Path] = {}
        # Engines that died under a call, for who made it to take out of service.
        self.lost: set[str] = set()
        # What each engine has staged and not loaded: there is room for one version.
        self.staged: dict[str, int] = {}

    async def snapshot(self, version: int) -> float:
        """Copy the learner's present weights, called `version`. Returns milliseconds. Raises SyncError."""
        learner = self.actors.learner
        return await self._learner(learner.snapshot, version, "copy the weights of")

    async def publish(self, version: int) -> SyncTimes:
        """Write the copy of `version` for the engines. Raises SyncError."""
        start = time.perf_counter()
        size = await self._learner(self.actors.learner.publish, version, "publish")
        self.files[version] = self._path(version)
        return SyncTimes(publish_seconds=time.perf_counter() - start, bytes=size)

    async def stage(self, versions: Mapping[str, int]) -> SyncTimes:
        """Have engines (name -> version) make published versions ready. Raises SyncError."""
        due = {name: v for name, v in versions.items() if self.staged.get(name) != v}
        times = await asyncio.gather(*(self._engine("stage", name, v) for name, v in due.items()))
        self.staged |= due
        return SyncTimes(staging_ms=tuple(t for t in times if t is not None))

    async def load(self, versions: Mapping[str, int]) -> SyncTimes:
        """Bring engines (name -> version) to published versions, all at once. Raises SyncError."""
        answers = await asyncio.gather(*(self._engine("load", n, v) for n, v in versions.items()))
        loaded = {n: t for n, t in zip(versions, answers, strict=True) if t is not None}
        times = loaded.values()
        for name in versions:
            self.staged.pop(name, None)
        return SyncTimes(
            staging_ms=tuple(t.staging_ms for t in times if t.staging_ms),
            pause_ms=tuple(t.pause_ms for t in times),
            swap_ms=tuple(t.swap_ms for t in times),
            loaded=tuple(loaded),
        )

    def forget(self, versions: Collection[int]) -> None:
        """Remove the files of these versions."""
        for version in versions:
            del self.files[version]
            self.replicas.forget(version)

    def _path(self, version: int) -> Path:
        return self.replicas.path(version, self.actors.home)

    async def _learner(self, act: Any, version: int, what: str) -> Any:
        try:
            return await within(act.remote(str(self._path(version))), self.load_seconds)
        except TimeoutError:
            raise SyncError(f"the learner did not {what} version {version} in time") from None
        except Exception as error:
            raise SyncError(
                f"the learner could not {what} version {version}: {first_line(error)}"
            ) from None

    async def _engine(self, act: str, name: str, version: int) -> Any:
        """What the engine answers; None where it has died."""
        try:
            return await within(
                reached(lambda: self._brought(act, name, version)), self.load_seconds
            )
        except ActorDiedError as error:
            if isinstance(error, RayTaskError):  # the node that it was to get its file from is gone
                raise SyncError(
                    f"{name} could not {act} version {version}: the learner's node is gone"
                ) from None
            self.lost.add(name)
            return None
        except TimeoutError:
            raise SyncError(
                f"{name} did not {act} version {version} within {self.load_seconds:g} s"
            ) from None
        except Exception as error:
            raise SyncError(
                f"{name} could not {act} version {version}: {first_line(error)}"
            ) from None

    async def _brought(self, act: str, name: str, version: int) -> Any:
        node = self.actors.node_of.get(name, self.actors.home)
        path = await self.replicas.bring(version, node)
        return await getattr(self.actors.engines[name], act).remote(str(path), version)
