"""Weight sync: the learner publishes a version, the engines load it while their requests wait."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from rl.cluster import Actors, first_line


class SyncError(Exception):
    """A version could not be published or loaded; the message is one sentence."""


@dataclass(frozen=True)
class SyncTimes:
    """One weight sync: seconds to write, and per engine how long it paused and loaded (ms)."""

    publish_seconds: float
    bytes: int
    pause_ms: tuple[float, ...]
    transfer_ms: tuple[float, ...]

    def metrics(self) -> dict[str, float]:
        """As a step's metrics; of the engines, the slowest one's figures."""
        return {
            "sync/publish_seconds": self.publish_seconds,
            "sync/megabytes": self.bytes / 1e6,
            "sync/pause_ms": max(self.pause_ms),
            "sync/transfer_ms": max(self.transfer_ms),
        }


class WeightSync:
    """Publishes into one folder; engines load all at once."""

    def __init__(self, actors: Actors, folder: Path, load_seconds: float) -> None:
        self.actors = actors
        self.folder = folder
        self.load_seconds = load_seconds

    async def send(self, version: int) -> SyncTimes:
        """Bring every engine to the learner's present weights, called `version`. Raises SyncError."""
        path = self.folder / f"version-{version}.safetensors"
        try:
            return await self._send(path, version)
        finally:
            path.unlink(missing_ok=True)

    async def _send(self, path: Path, version: int) -> SyncTimes:
        start = time.perf_counter()
        try:
            size = await asyncio.wait_for(
                self.actors.learner.publish.remote(str(path)), self.load_seconds
            )
        except TimeoutError:
            raise SyncError(f"the learner did not publish version {version} in time") from None
        except Exception as error:
            raise SyncError(
                f"the learner could not publish version {version}: {first_line(error)}"
            ) from None
        published = time.perf_counter()
        times = await asyncio.gather(
            *(self._load(name, str(path), version) for name in self.actors.engines)
        )
        return SyncTimes(
            publish_seconds=published - start,
            bytes=size,
            pause_ms=tuple(t.pause_ms for t in times),
            transfer_ms=tuple(t.transfer_ms for t in times),
        )

    async def _load(self, name: str, path: str, version: int):
        try:
            return await asyncio.wait_for(
                self.actors.engines[name].load.remote(path, version), self.load_seconds
            )
        except TimeoutError:
            raise SyncError(
                f"{name} did not load version {version} within {self.load_seconds:g} s"
            ) from None
        except Exception as error:
            raise SyncError(
                f"{name} could not load version {version}: {first_line(error)}"
            ) from None
